"""What every test runs under. The environment is set before torch is imported, which reads it once."""

import os

# Idle OpenMP threads must sleep, and a worker gets one thread: spinning ones slow every other process many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Only the tests of what is kept of a decoder keep anything.
os.environ["VALUEMBED_CACHE"] = ""
# Nothing may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# What takes torch is imported by the fixtures: whoever deals the tests out to others runs none, and starts at once.
if TYPE_CHECKING:
    from once import Traces

FEW_SENTENCES = 16

# The same examples in every run: a failure on one machine is a failure on all.
settings.register_profile("valuembed", deadline=None, derandomize=True, database=None)
settings.load_profile("valuembed")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("valuembed", "the tests as on another machine (scripts/other_cpus.py runs them so)")
    group.addoption(
        "--half-precision",
        choices=("fast", "slow"),
        help="take the CPU for one that computes bfloat16 and float16 natively, or for one that does not",
    )
    group.addoption(
        "--shift-weights",
        action="store_true",
        help="put the weights of each load elsewhere in memory, off the boundaries that kernels like",
    )


@pytest.fixture(scope="session", autouse=True)
def _machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine that the options describe."""
    import other_machines

    with pytest.MonkeyPatch.context() as patch:
        if speed := request.config.getoption("--half-precision"):
            other_machines.half_precision(patch, fast=speed == "fast")
        if request.config.getoption("--shift-weights"):
            other_machines.shift_weights(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _traces() -> "Iterator[Traces]":
    """Loads trace each configuration once: to trace a tiny decoder takes longer than all the rest of its loading."""
    from once import Traces

    with pytest.MonkeyPatch.context() as patch:
        yield Traces(patch)


@pytest.fixture
def traced_anew(_traces: "Traces") -> None:
    """For tests of what loading does besides: what earlier tests traced is traced again."""
    _traces.forget()


@pytest.fixture(scope="session", autouse=True)
def _few_general_sentences() -> Iterator[None]:
    """Loads of centred recipes read a few of the general sentences, for speed."""
    from valuembed.models import centring

    few = centring.general_sentences()[:FEW_SENTENCES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(centring, "general_sentences", lambda: few)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with grouped heads, its tokenizer with a BOS."""
    from valuembed.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen3", tokenizer="byte_level_bos")


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose layers differ: sliding windows beside full attention."""
    from valuembed.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "sliding", "gemma3_text", tokenizer="metaspace_bos")
