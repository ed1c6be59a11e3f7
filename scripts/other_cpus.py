"""Run the numeric tests again as other CPUs would compute them.

    python scripts/other_cpus.py [--all] [--jobs N] [--setting WORDS]

How numbers are added up depends on the CPU: on the instructions that torch, oneDNN and MKL find, on whether a half
precision is fast, on where weights lie in memory, and on the number of threads. Each setting below makes this machine
compute as another one does, where the libraries or the tests' own options can be told to. One line is printed for each,
and for what fails the command that fails again.

Without --all, the tests that hold most are run, in under three minutes on two idle cores. With it, every test file that
handles numbers is, which takes hours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]

QUICK = (
    "readout/test_pooling.py",
    "readout/test_hooks.py",
    "models/test_loading.py::test_every_method_gives_unit_vectors_of_its_width",
    "models/test_loading.py::test_roles_have_templates_of_their_own",
    "models/test_loading.py::test_save_and_load_give_the_same_vectors",
    "models/test_loading.py::test_a_saved_folder_keeps_its_recipe_unless_asked",
    "analysis/test_calibration_fit.py::test_an_adapter_counts",
    "models/test_bundled.py::test_golden_vectors",
)
"""What is read and pooled beside the reference, saved and loaded again, and compared with golden vectors."""

HALVES = (
    "models/test_bundled.py::test_golden_vectors",
    "backbone/test_adapters.py::test_info_tells_the_precision_that_an_adapter_was_saved_in",
    "backbone/test_adapters.py::test_an_adapter_on_the_bundled_model_is_saved_alone",
    "backbone/test_adapters.py::test_two_round_trips_give_the_same_folder",
    "analysis/test_calibration_fit.py::TestHead::test_the_bundled_models_own_is_found_by_itself",
    "models/test_calibration.py::TestModule::test_is_float32_whatever_the_decoder_is_in",
    "training/test_finetune.py::TestWeights::test_on_half_precision_are_float32",
    "training/test_finetune.py::TestSaved::test_model_is_the_trained_one_both_ways",
    "cli/test_main.py::test_the_sample_is_embedded_and_searched_with_the_bundled_model",
    "project/test_docs.py::test_python_blocks_run[README.md]",
)
"""What loads the bundled model, whose checkpoint is in bfloat16, or asks for a half precision."""

ENDS = ("failure", "error", "skipped")
"""How a test may end that does not pass, in pytest's report."""

NUMERIC = re.compile(r"^\s*(?:import|from) (?:numpy|torch)\b|\bload\(|\bPanel\b", re.MULTILINE)
"""What stands in a test file that handles numbers."""

CLEARED = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OMP_NUM_THREADS")
"""What a setting alone may set: none of it comes in from outside."""

LOADED = (
    "hypothesis",
    "pytest",
    "scipy.stats",
    "sentence_transformers",
    "valuembed.evaluation.runner",
    "valuembed.models.loading",
    "valuembed.training.finetune",
)
"""What nearly every test imports, which takes as long as the tests of a setting."""

BEFORE_LOADING = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "VALUEMBED_CACHE": "", "HF_HUB_OFFLINE": "1"}
"""What `tests/conftest.py` sets before torch is imported."""


@dataclass(frozen=True)
class Setting:
    """A machine that is not this one.

    Attributes:
        means: what it stands for.
        environment: read by the libraries when they are loaded.
        options: of the tests; `tests/conftest.py` has them.
        quick: the tests that it is worth most for.
        x86: it says something only on x86.
    """

    means: str
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = QUICK
    x86: bool = True

    @property
    def words(self) -> str:
        """Its environment and its options, as on a command line."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.options])

    @property
    def after_loading(self) -> bool:
        """Whether its environment is read when something is first computed, and not when libraries are loaded."""
        return "OMP_NUM_THREADS" not in self.environment

    def arguments(self, tests: Sequence[str]) -> list[str]:
        """With which pytest runs tests under it."""
        return ["-q", "-p", "no:cacheprovider", *self.options, *tests]

    def command(self, tests: Sequence[str]) -> list[str]:
        """What runs tests under it, its environment set."""
        return [sys.executable, "-m", "pytest", *self.arguments(tests)]

    def again(self, tests: Sequence[str]) -> str:
        """The same as a line for a shell."""
        environment = {"OMP_NUM_THREADS": "1", **self.environment}
        return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *self.command(tests)])


SETTINGS = (
    # First, as it loads everything by itself, beside the process that loads everything for the others.
    Setting("two cores for each process", {"OMP_NUM_THREADS": "2"}, x86=False),
    Setting("a CPU without vector instructions that torch knows", {"ATEN_CPU_CAPABILITY": "default"}),
    Setting("torch on a CPU with AVX2 at most", {"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("oneDNN on a CPU with AVX2 at most", {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Setting("MKL on a CPU with AVX2 at most", {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    Setting(
        "MKL on a CPU of another maker than Intel: its sums depend on where an operand lies",
        {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        ("--shift-weights",),
    ),
    Setting("a CPU on which half precisions are slow", options=("--half-precision=slow",), quick=HALVES, x86=False),
    Setting("a CPU on which half precisions are fast", options=("--half-precision=fast",), quick=HALVES, x86=False),
)


@dataclass(frozen=True)
class Outcome:
    """What came of the tests under one setting."""

    setting: Setting
    passed: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float
    said: str

    @property
    def good(self) -> bool:
        """Whether tests ran and all of them passed."""
        return self.passed > 0 and not self.failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code is 1 if any test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every test file that handles numbers")
    parser.add_argument("--jobs", type=int, default=2, help="settings that run at once")
    parser.add_argument("--setting", default="", help="only settings whose line holds these words")
    options = parser.parse_args(arguments)
    settings = [setting for setting in SETTINGS if options.setting in setting.words]
    if not settings:
        parser.error(f"no setting holds {options.setting!r}; there are: {', '.join(s.words for s in SETTINGS)}")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        settings = [setting for setting in settings if not setting.x86]
    every = numeric_files(ROOT / "tests") if options.all else None
    good = True
    forks = sys.platform == "linux" and sum(setting.after_loading for setting in settings) > 1
    if forks:
        start_loading()
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, one, every or one.quick, fork=forks and one.after_loading) for one in settings]
        for outcome in (done.result() for done in runs):
            print(describe(outcome), flush=True)
            good = good and outcome.good
    return 0 if good else 1


def numeric_files(folder: Path) -> list[str]:
    """Every test file that handles numbers."""
    files = sorted(folder.rglob("test_*.py"))
    return [file.relative_to(folder).as_posix() for file in files if NUMERIC.search(file.read_text(encoding="utf-8"))]


def start_loading() -> None:
    """Start the process of which others are copies that have everything imported, and nothing computed."""
    kept = dict(os.environ)
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(LOADED))
    os.environ.update(BEFORE_LOADING)
    for name in set(CLEARED) - set(BEFORE_LOADING):
        os.environ.pop(name, None)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def run(setting: Setting, tests: Sequence[str], root: Path = ROOT, *, fork: bool = False) -> Outcome:
    """Run tests, named within their folder, under a setting, in a process of their own.

    Args:
        setting, tests: what is run.
        root: the folder around that of the tests.
        fork: have the process made by :func:`start_loading`.
    """
    tests = [f"tests/{test}" for test in tests]
    environment = {name: value for name, value in os.environ.items() if name not in CLEARED}
    environment |= setting.environment
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, output = Path(folder) / "report.xml", Path(folder) / "output.txt"
        # This kind of report has the file that each test is in.
        asked = [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        if fork:
            arguments = [*setting.arguments(tests), *asked]
            process = multiprocessing.get_context("forkserver").Process(
                target=run_here, args=(arguments, environment, str(root), str(output))
            )
            process.start()
            process.join()
            code, said = process.exitcode, output.read_text(encoding="utf-8") if output.exists() else ""
        else:
            done = subprocess.run(
                [*setting.command(tests), *asked],
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            code, said = done.returncode, done.stdout + done.stderr
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    ended = {kind: [node_id(case) for case in cases if case.find(kind) is not None] for kind in ENDS}
    failed = tuple(dict.fromkeys(ended["failure"] + ended["error"]))
    passed = sum(all(case.find(kind) is None for kind in ENDS) for case in cases)
    # A process that died has left no report.
    if code and not failed:
        failed = tuple(tests)
    seconds = time.monotonic() - started
    return Outcome(setting, passed, failed, len(ended["skipped"]), seconds, said)


def run_here(arguments: Sequence[str], environment: Mapping[str, str], root: str, output: str) -> None:
    """Run pytest in this process, which it ends; what it says goes to a file."""
    with open(output, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(root)
    import pytest

    if (name := environment.get("ATEN_CPU_CAPABILITY")) and (torch := sys.modules.get("torch")):
        # What is computed first settles what all libraries take the CPU for, and has to be a test.
        found = torch.backends.cpu.get_cpu_capability()
        assert found.lower() == name, f"torch was told of {name}, and takes the CPU for {found}"
    # Plugins that others have imported already cannot explain their own assertions.
    sys.exit(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]))


def node_id(case: ElementTree.Element) -> str:
    """The name by which pytest runs a test again; that of its file where this could not be imported."""
    file, holder, name = (case.get(key, "") for key in ("file", "classname", "name"))
    if not holder:
        return file
    classes = holder.removeprefix(file.removesuffix(".py").replace("/", ".")).split(".")
    return "::".join([file, *filter(None, classes), name])


def describe(outcome: Outcome) -> str:
    """A line about a setting; behind it, where tests failed, what pytest said and how to see it again."""
    line = (
        f"{'ok    ' if outcome.good else 'FAILED'}  {outcome.passed:>5,} passed  {len(outcome.failed):>3} failed  "
        f"{outcome.skipped:>3} skipped  {outcome.seconds:>5.0f} s  {outcome.setting.words}: {outcome.setting.means}"
    )
    if outcome.good:
        return line
    return f"{line}\n{outcome.said.strip()[-20_000:]}\nto see it again:\n  {outcome.setting.again(outcome.failed)}"


if __name__ == "__main__":
    sys.exit(main())
