"""The script that asks a server through other servers' clients; those that are not installed are left out."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from serving import FakeEngine, running, vector_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "try_clients.py"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_every_client_that_is_installed_gets_the_vectors(script, capsys, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("VALUEMBED_API_KEY", "a-key")
    # Offline, Hugging Face's client does not even ask this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running(FakeEngine("fake"), keys=["a-key"]) as (url, _):
        assert script["main"](url) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == len(script["CLIENTS"])
    assert "the same vectors" in next(line for line in said.splitlines() if line.startswith("OpenAI"))
    assert "the same vectors" in next(line for line in said.splitlines() if line.startswith("Hugging Face"))


def test_other_vectors_and_errors_are_told(script):
    expected = np.stack([vector_of(text) for text in script["TEXTS"]])
    with running(FakeEngine("fake")) as (url, _):
        assert script["try_client"]("OpenAI", url, "fake", "none", expected[::-1]).endswith("OTHER VECTORS")
        told = script["try_client"]("OpenAI", url, "other", "none", expected)
    assert "NotFoundError: Error code: 404" in told
    assert "model 'other' is not served; 'fake' is" in told
