"""The tests run as on other CPUs: which settings there are, what is counted, and how a failure is seen again."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import other_cpus
import pytest
from other_cpus import (
    HALVES,
    QUICK,
    ROOT,
    SETTINGS,
    Outcome,
    Setting,
    describe,
    main,
    numeric_files,
    run,
    start_loading,
)

WORDS = [
    "OMP_NUM_THREADS=2",
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_ENABLE_INSTRUCTIONS=SSE4_2 --shift-weights",
    "--half-precision=slow",
    "--half-precision=fast",
]
SOME = """
import os
import pytest

class TestIt:
    @pytest.mark.parametrize("name", ["a b", "c"])
    def test_environment(self, name):
        assert os.environ.get("FLAVOUR") == "mint" or name == "c"

@pytest.fixture
def broken():
    raise RuntimeError("no")

def test_broken(broken):
    pass

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What is installed beside pytest takes seconds to be imported.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(SOME)
    (tmp_path / "tests" / "test_torn.py").write_text("import no_such_module")
    return tmp_path


def test_settings() -> None:
    assert [setting.words for setting in SETTINGS] == WORDS


def test_files() -> None:
    found = numeric_files(ROOT / "tests")
    assert {"models/test_loading.py", "readout/test_pooling.py", "serving/test_server_load.py"} <= set(found)
    assert not {"project/test_house.py", "utils/test_progress.py"} & set(found)


@pytest.mark.parametrize("name", sorted({*QUICK, *HALVES}))
def test_quick_tests_are_there(name: str) -> None:
    file, *inside = name.partition("[")[0].split("::")
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert all(re.search(rf"(?:class|def) {part}\b", source) for part in inside)


@pytest.mark.process
def test_what_fails_is_counted_and_seen_again(project: Path) -> None:
    outcome = run(Setting("flavours", {"FLAVOUR": "mint"}), ["test_some.py"], project)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, ("tests/test_some.py::test_broken",), 1)
    outcome = run(Setting("flavours", {"FLAVOUR": "plum jam"}), ["test_some.py"], project)
    wrong = "tests/test_some.py::TestIt::test_environment[a b]"
    assert (outcome.passed, outcome.failed) == (1, (wrong, "tests/test_some.py::test_broken"))
    said = describe(outcome)
    assert said.startswith("FAILED      1 passed    2 failed    1 skipped")
    assert "'FLAVOUR=plum jam': flavours\n" in said
    command = said.splitlines()[-1].strip()
    assert shlex.split(command)[-2:] == [wrong, "tests/test_some.py::test_broken"]
    again = subprocess.run(command, shell=True, cwd=project, capture_output=True, text=True, check=False)
    assert "1 failed, 1 error in" in again.stdout


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_a_copied_process_tells_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_cpus, "LOADED", ("pytest",))
    start_loading()
    setting = Setting("flavours", {"FLAVOUR": "plum jam"})
    copied, own = (run(setting, ["test_some.py"], project, fork=fork) for fork in (True, False))
    assert (copied.passed, copied.failed, copied.skipped) == (own.passed, own.failed, own.skipped) == (1, own.failed, 1)
    assert "1 failed, 1 passed, 1 skipped, 1 error in" in copied.said
    assert run(Setting("as it is"), ["test_torn.py"], project, fork=True).failed == ("tests/test_torn.py",)


@pytest.mark.process
def test_a_file_that_cannot_be_imported_is_a_failure(project: Path) -> None:
    outcome = run(SETTINGS[0], ["test_torn.py"], project)
    assert (outcome.passed, outcome.failed, outcome.good) == (0, ("tests/test_torn.py",), False)
    assert "no_such_module" in describe(outcome)


@pytest.mark.process
def test_no_test_at_all_is_a_failure(project: Path) -> None:
    (project / "tests" / "test_none.py").write_text("")
    assert not run(SETTINGS[0], ["test_none.py"], project).good


@pytest.mark.process
def test_nothing_comes_in_from_outside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AUTO,STRICT")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    (project / "tests" / "test_clean.py").write_text(
        "import os\ndef test_it():\n    assert not {'MKL_CBWR', 'ATEN_CPU_CAPABILITY'} & set(os.environ)\n"
    )
    assert run(Setting("as it is"), ["test_clean.py"], project).good


def test_one_line_a_setting_and_the_exit_code(monkeypatch, capsys) -> None:
    asked = []

    def fake(setting: Setting, tests: list[str], *, fork: bool) -> Outcome:
        assert fork == (bool(loading) and setting.after_loading)
        asked.append((setting.words, tests))
        return Outcome(setting, 1234, ("x",) if setting.environment.get("OMP_NUM_THREADS") else (), 5, 6.7, "E  said")

    loading: list[bool] = []
    monkeypatch.setattr(other_cpus, "run", fake)
    monkeypatch.setattr(other_cpus, "start_loading", lambda: loading.append(True))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert main(["--setting", "avx2"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ok      1,234 passed    0 failed    5 skipped      7 s  ATEN_CPU_CAPABILITY=avx2: torch on")
    assert main(["--jobs", "1"]) == 1
    assert [words for words, _ in asked[1:]] == WORDS
    again = f"  env OMP_NUM_THREADS=2 {sys.executable} -m pytest -q -p no:cacheprovider x"
    assert capsys.readouterr().out.splitlines()[3] == again
    assert [tests for _, tests in asked[1:]] == [QUICK] * 6 + [HALVES] * 2
    asked.clear()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    main(["--all"])
    assert [words for words, _ in asked] == [WORDS[0], *WORDS[-2:]]
    assert len(asked[0][1]) > len(QUICK)
    with pytest.raises(SystemExit):
        main(["--setting", "Z80"])
    assert (
        "no setting holds 'Z80'; there are: OMP_NUM_THREADS=2, ATEN_CPU_CAPABILITY=default, " in capsys.readouterr().err
    )
