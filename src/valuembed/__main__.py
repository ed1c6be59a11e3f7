"""Entry point of the ``valuembed`` command and of ``python -m valuembed``."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
"""What a shell reports for a command that was ended by Ctrl-C."""


def main() -> NoReturn:
    """Run the command line, and end with one line on stderr and the exit code that goes with it."""
    told = _Told()
    try:
        # Read once, when torch is imported: idle OpenMP threads that spin slow everything down beside another busy
        # process.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from valuembed._utils import streams
        from valuembed.execution import cpu_memory

        streams.prepare()
        cpu_memory.tune_memory()
        code = _run()
    except BaseException as error:
        # Python code that C code calls passes an interruption on as an error of its own.
        if not told.interrupted and not isinstance(error, KeyboardInterrupt):
            raise
        _say("interrupted")
        code = INTERRUPTED
    finally:
        # From here on another one ends the process at once, without a word of Python's.
        told.done()
    sys.exit(code)


def _run() -> int:
    from valuembed._utils.streams import give_up
    from valuembed.cli.main import app
    from valuembed.errors import ValuembedError

    code = 0
    try:
        try:
            app(prog_name="valuembed")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up()
        return code or 1
    except ValuembedError as error:
        give_up()
        # Where a command has failed, it has said why.
        if not code:
            _say(f"error: {error}")
        return code or 1
    return code


def _say(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _interrupt() -> None:
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        _thread.interrupt_main()


class _Told:
    """Whether the process was told to stop by Ctrl-C, wherever Python was at that moment."""

    def __init__(self) -> None:
        self.interrupted = False
        self._hook = sys.unraisablehook
        # Another handler is somebody's wish, and a shell that starts a command in the background ignores the signal.
        self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._handle)
            sys.unraisablehook = self._unraisable

    def done(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def _unraisable(self, ended: Any) -> None:
        # Where nothing can be raised, as in a finalizer, it is told once more when that is over.
        if issubclass(ended.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _interrupt).start()
        else:
            self._hook(ended)


if __name__ == "__main__":
    main()
