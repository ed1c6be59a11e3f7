"""Terminals, pipes and disks as they come: results in any encoding, and one line where they cannot be written."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from running import run, started

from valuembed._utils import streams
from valuembed.cli import framework as commands
from valuembed.errors import InputError

pytestmark = pytest.mark.slow

ODD = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-4E2D} \N{GRINNING FACE}"
ENCODINGS = ("cp1252", "latin-1", "ascii", "utf-8", "cp932")


class Full(io.RawIOBase):
    """A disk without room."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.number = number

        self.descriptor = os.open(os.devnull, os.O_WRONLY)

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        super().close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))


def lines(ended: Any) -> list[str]:
    """What a program wrote on stderr, without the notes that go with the bundled model."""
    return [
        line
        for line in ended.stderr.decode("utf-8", "backslashreplace").splitlines()
        if not line.startswith(("note: ", "the checkpoint is in"))
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
class TestEncodings:
    def test_tables(self, encoding: str) -> None:
        ended = started("explain", f"Hello {ODD}", encoding=encoding)
        assert ended.code == 0
        assert lines(ended) == []
        # What is written can be read in that encoding, and the template's blank is an escape where it has none.
        assert ("\\u2423" if encoding != "utf-8" else "\u2423") in ended.stdout.decode(encoding)

    def test_json(self, encoding: str) -> None:
        ended = started("similarity", "Hello world", ODD, "--json", encoding=encoding)
        assert ended.code == 0
        assert json.loads(ended.stdout.decode(encoding))["texts"] == ["Hello world", ODD]

    def test_errors(self, encoding: str) -> None:
        ended = started("info", f"{ODD}/{ODD}\udcff\n\x1b[31m", encoding=encoding)
        assert ended.code == 1
        (line,) = lines(ended)
        assert line.startswith("error: ")
        assert "\x1b" not in line
        assert b"Traceback" not in ended.stderr


def test_what_an_encoding_holds_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = started("similarity", "Hello", "caf\xe9", "--json", encoding="cp1252").stdout.decode("cp1252")
    assert '"caf\xe9"' in text
    assert "\\u" not in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--help"], errno.ENOSPC), (["similarity", "a", "b"], errno.ENOSPC), (["--version"], errno.EIO)],
)
def test_a_disk_that_takes_nothing(arguments: list[str], reason: int) -> None:
    ended = started(*arguments, stdout=Full(reason))
    assert ended.code == 1
    assert lines(ended) == [f"error: cannot write the results to stdout: {os.strerror(reason)}"]


@pytest.mark.parametrize("arguments", [["--help"], ["similarity", "a", "b"], ["similarity", "a", "b", "--json"]])
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    ended = started(*arguments, stdout=Full(errno.EPIPE))
    assert ended.code == 1
    assert lines(ended) == []


def test_narrow_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "20", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    ended = started("similarity", "Hello world", "b")
    assert ended.code == 0
    # Texts are broken to fit; numbers never are.
    assert ended.stdout.decode().split().count("1.000") == 2
    assert b"\x1b" not in ended.stdout


class TestErrorsOfTheSystem:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "some/file"), "some/file: No space left on device"),
            (OSError(errno.EXDEV, "Invalid link", "one", None, "two"), "one and two: Invalid link"),
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
            (InputError("first\nsecond\x1b[0m"), "first second\N{REPLACEMENT CHARACTER}[0m"),
        ],
    )
    def test_are_one_line(self, error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(options: object) -> None:
            raise error

        monkeypatch.setattr(commands, "load_encoder", fail)
        monkeypatch.setattr("valuembed.cli.main.load_encoder", fail)
        result = run("similarity", "a", "b")
        assert result.exit_code == 1
        assert result.stderr == f"error: {line}\n"


class TestCtrlC:
    @pytest.fixture(autouse=True)
    def _in_the_foreground(self) -> Iterator[None]:
        """A shell that starts the tests in the background has them ignore the signal."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_while_a_command_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("valuembed.cli.main.load_encoder", lambda options: signal.raise_signal(signal.SIGINT))
        ended = started("similarity", "a", "b")
        assert ended.code == 130
        assert lines(ended) == ["interrupted; nothing was written"]

    def test_where_c_code_makes_another_error_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(options: object) -> None:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("a module of C code failed to import") from None

        monkeypatch.setattr("valuembed.cli.main.load_encoder", load)
        ended = started("similarity", "a", "b")
        assert ended.code == 130
        assert lines(ended) == ["interrupted"]

    def test_in_a_finalizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Busy:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGINT)

        def load(options: object) -> None:
            Busy()
            time.sleep(5)

        monkeypatch.setattr("valuembed.cli.main.load_encoder", load)
        ended = started("similarity", "a", "b")
        assert ended.code == 130
        assert lines(ended) == ["interrupted; nothing was written"]

    def test_a_program_that_fails_by_itself_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(options: object) -> None:
            raise RuntimeError("a mistake of ours")

        monkeypatch.setattr("valuembed.cli.main.load_encoder", load)
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            started("similarity", "a", "b")


class TestStderr:
    @pytest.mark.parametrize("stream", [None, io.StringIO()])
    def test_missing_or_closed(self, stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        assert not streams.stderr_is_open()
        assert not streams.is_watched()

    def test_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", terminal)
        assert streams.stderr_is_open()
        assert streams.is_watched()


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="the redirections are a POSIX shell's")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 1, "error: cannot write the results to stdout: No space left on device\n"),
        (">&-", 0, ""),
        ("<&- 2>&- >&-", 0, ""),
        ("2>/dev/full", 0, ""),
    ],
)
def test_redirections_of_a_shell(redirection: str, code: int, said: str) -> None:
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    command = f'"{sys.executable}" -m valuembed --help {redirection}'
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (code, said)
