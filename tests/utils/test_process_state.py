"""A round of library calls leaves its user's process as it was, and what is changed for a while is put back."""

from __future__ import annotations

import asyncio
import csv
import ctypes
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import GRADED, pairs_file, trained

import valuembed
from valuembed._utils.process_state import environment, ignored_warnings, log_level, random_state
from valuembed.analysis.layer_sweep import sweep
from valuembed.models.explanation import explain
from valuembed.reporting import plots
from valuembed.search.exact import search, similarity_matrix

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_anew")]

TEXTS = ["the sun rose", "over a quiet town while nobody watched", "rain"]


def process_wide() -> dict[str, Any]:
    """What a library could leave changed in its user's process."""
    import datasets
    import matplotlib
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled

    torch_backends = torch.backends
    return {
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "csv": csv.field_size_limit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warning filters": list(warnings.filters),
        "warning functions": (warnings.showwarning, warnings.formatwarning),
        "logging is off": logging.root.manager.disable,
        "log levels": {
            name: logger.level
            for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]
            if isinstance(logger, logging.Logger)
        },
        "root handlers": list(logging.root.handlers),
        "numpy errors": np.geterr(),
        "numpy printing": np.get_printoptions(),
        "random": random.getstate(),
        "numpy random": np.random.get_state()[1].tolist(),
        "torch random": torch.random.get_rng_state().tolist(),
        "torch": (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_float32_matmul_precision(),
            torch.is_anomaly_enabled(),
            torch_backends.mkldnn.enabled,
            torch_backends.cudnn.benchmark,
            torch_backends.cudnn.deterministic,
            torch_backends.cuda.matmul.allow_tf32,
            torch_backends.cuda.flash_sdp_enabled(),
            torch_backends.cuda.math_sdp_enabled(),
        ),
        "transformers": (
            transformers.logging.get_verbosity(),
            transformers.logging.is_progress_bar_enabled(),
        ),
        "bars": (datasets.are_progress_bars_disabled(), are_progress_bars_disabled()),
        "matplotlib": (matplotlib.get_backend(auto_select=False), matplotlib.rcParams.copy()),
        "threads that would keep the process": [
            thread.name
            for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.main_thread()
        ],
    }


def a_round(folder: Path, tmp_path: Path) -> None:
    model = valuembed.load(folder, "wva", device="cpu")
    model.encode([*TEXTS, " ".join(TEXTS)] * 20)
    inputs = tmp_path / "in.csv"
    # A field that is longer than the csv module allows of itself.
    inputs.write_text("id,text\n1,a cat\n2," + "word " * 30_000 + "\n", encoding="utf-8")
    with pytest.warns(valuembed.TruncationWarning):
        valuembed.embed_file(model, inputs, tmp_path / "out.parquet", progress=False)
    with pytest.warns(valuembed.TruncationWarning):
        valuembed.embed_corpus(model, inputs, tmp_path / "corpus", progress=False)
    search(model, "a cat", tmp_path / "out.parquet")
    plots.save(plots.matrix(similarity_matrix(model, TEXTS), TEXTS, title="all", label="cosine"), tmp_path / "plot.png")
    explain(model, TEXTS[1]).figure()
    sweep(folder, f"sts:{GRADED}", device="cpu", progress=False).figure()
    trained(folder, pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "trained", steps=2)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the C library's allocator is told."""
    calls: list[tuple[int, int]] = []
    open_library = ctypes.CDLL

    class Library:
        gnu_get_libc_version = staticmethod(lambda: b"2.36")
        mallopt = staticmethod(lambda name, value: calls.append((name, value)) or 1)

    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *more, **named: open_library(name, *more, **named) if name else Library
    )
    return calls


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is another; loggers of packages that were imported in between have levels of their own."""
    levels = {logger: after["log levels"][logger] for logger in before["log levels"]}
    return [name for name, value in before.items() if {**after, "log levels": levels}[name] != value]


def test_library_calls_leave_the_process_as_it_was(folder: Path, tmp_path: Path, told: list[tuple[int, int]]) -> None:
    before = process_wide()
    a_round(folder, tmp_path)
    after = process_wide()
    for name in changed(before, after):
        assert after[name] == before[name], name
    assert told == []


def test_evaluating_does_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")
    from valuembed.evaluation.runner import evaluate

    before = process_wide()
    evaluate(folder, "va", [f"sts:{GRADED}"], device="cpu", output=tmp_path / "scores", progress=False)
    after = process_wide()
    for name in changed(before, after):
        assert after[name] == before[name], name


def test_another_thread_without_streams_or_a_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = valuembed.load(folder, "va", device="cpu")
    expected = model.encode(TEXTS)
    (tmp_path / "in.txt").write_text("a cat\na dog\n", encoding="utf-8")
    found: list[Any] = []

    def calls() -> None:
        try:
            again = valuembed.load(folder, "va", device="cpu")
            found.append(again.encode(TEXTS, show_progress_bar=True))
            found.append(valuembed.embed_file(again, tmp_path / "in.txt", tmp_path / "out.parquet"))
            found.append(valuembed.embed_corpus(again, tmp_path / "in.txt", tmp_path / "corpus"))
        except BaseException as error:
            found.append(error)

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with np.errstate(all="raise"):
        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()
    monkeypatch.undo()
    assert not [error for error in found if isinstance(error, BaseException)]
    assert np.allclose(found[0], expected, atol=1e-6)
    assert (found[1].embedded, found[2].embedded) == (2, 2)


def test_encode_within_a_running_event_loop(folder: Path) -> None:
    model = valuembed.load(folder, "va", device="cpu")

    async def encode() -> Any:
        return model.encode(TEXTS)

    assert np.array_equal(asyncio.run(encode()), model.encode(TEXTS))


class TestChangedForAWhile:
    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VALUEMBED_ONE", "before")
        monkeypatch.delenv("VALUEMBED_TWO", raising=False)
        with environment({"VALUEMBED_ONE": "1", "VALUEMBED_TWO": "2"}):
            assert (os.environ["VALUEMBED_ONE"], os.environ["VALUEMBED_TWO"]) == ("1", "2")
        assert os.environ["VALUEMBED_ONE"] == "before"
        assert "VALUEMBED_TWO" not in os.environ

    def test_the_level_of_a_logger(self, caplog: pytest.LogCaptureFixture) -> None:
        with log_level("some.package", logging.ERROR):
            logging.getLogger("some.package.part").warning("unheard")
            logging.getLogger("other").warning("heard")
        logging.getLogger("some.package.part").warning("heard again")
        assert [record.message for record in caplog.records] == ["heard", "heard again"]

    def test_warnings_by_message_on_threads_that_overlap(self) -> None:
        before = list(warnings.filters)
        one, two = (
            ignored_warnings("An old way", DeprecationWarning),
            ignored_warnings("An old way", DeprecationWarning),
        )
        # Entered and left in the same order: the later one is still within.
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        warnings.warn("An old way to do it", DeprecationWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="An old way of another kind"):
            warnings.warn("An old way of another kind", UserWarning, stacklevel=1)
        two.__exit__(None, None, None)
        with pytest.raises(DeprecationWarning, match="An old way"):
            warnings.warn("An old way to do it", DeprecationWarning, stacklevel=1)
        assert list(warnings.filters) == before

    def test_generators_of_random_numbers(self) -> None:
        with random_state():
            expected = (random.random(), np.random.random(), float(torch.rand(())))
        with random_state():
            random.seed(1)
            np.random.seed(1)
            torch.manual_seed(1)
        assert (random.random(), np.random.random(), float(torch.rand(()))) == expected
