"""What every test runs under. The environment is set before torch is imported, which reads it once."""

import os

# Idle OpenMP threads must sleep, and a worker gets one thread: spinning ones slow every other process many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
# Only the tests of what is kept of a decoder keep anything.
os.environ["VALUEMBED_CACHE"] = ""
# Nothing may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

from valuembed.testing import tiny_checkpoint

# The same examples in every run: a failure on one machine is a failure on all.
settings.register_profile("valuembed", deadline=None, derandomize=True, database=None)
settings.load_profile("valuembed")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with grouped heads, its tokenizer with a BOS."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen3", tokenizer="byte_level_bos")


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose layers differ: sliding windows beside full attention."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "sliding", "gemma3_text", tokenizer="metaspace_bos")
