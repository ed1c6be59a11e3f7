"""Models for the workers of a Ray cluster, which import this file: light, and dying or failing when a test says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fakes import FakeEncoder

from valuembed.errors import CheckpointError, ReadingError

DIE, ALWAYS_DIE, FAIL = "die", "always die", "fail"


@dataclass(frozen=True)
class Loading:
    """Loads a fake model, and writes down who did.

    Args:
        notes: folder in which a worker leaves a file with its process id and environment.
        behaviour: what a call of the model does besides: ``DIE`` kills the first worker that is in the middle of a
            shard, ``ALWAYS_DIE`` each, ``FAIL`` raises.
        shift: for other weights in every worker but the first.
        missing: fail to load.
    """

    notes: Path
    behaviour: str = ""
    shift: float = 0.0
    missing: bool = False

    def __call__(self) -> FakeEncoder:
        if self.missing:
            raise CheckpointError("folder 'gone' does not exist")
        kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE")}
        (self.notes / f"{os.getpid()}.worker").write_text(repr(("torch" in sys.modules, kept)))
        first = self._is_first("loaded")
        return Behaving(self, width=256, shift=0.0 if first else self.shift)

    def _is_first(self, what: str) -> bool:
        try:
            (self.notes / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def act(self, texts: list[str], calls: int) -> None:
        # The first call is the probe.
        if calls == 0:
            return
        time.sleep(0.02)
        # One in the middle: both workers have begun, and this one has finished something.
        if (
            self.behaviour == DIE
            and calls > 2
            and len(list(self.notes.glob("*.worker"))) > 1
            and self._is_first("died")
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour == ALWAYS_DIE and any("a.jsonl number 30 " in text for text in texts):
            os._exit(1)
        if self.behaviour == FAIL:
            raise ReadingError("the pass gave nothing")


class Behaving(FakeEncoder):
    """A fake model that does what its loading says."""

    def __init__(self, loading: Loading, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.loading = loading

    def encode_document(self, inputs, **options):
        self.loading.act(inputs, len(self.calls))
        return super().encode_document(inputs, **options)
