"""What is kept of a survey is what a survey finds, and is left alone where it may be something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import valuembed
from valuembed.backbone import facts_cache
from valuembed.backbone.checkpoints.location import Checkpoint, locate
from valuembed.backbone.facts_cache import BUNDLED_FACTS, DecoderFacts, trace_facts
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def surveys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints that are surveyed."""
    asked: list[str] = []

    def note(checkpoint: Checkpoint) -> DecoderFacts:
        asked.append(checkpoint.name)
        return trace_facts(checkpoint)

    monkeypatch.setattr(facts_cache, "trace_facts", note)
    return asked


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json"))


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "gpt_oss", "jamba", "gpt2"])
def test_what_is_read_from_disk_is_what_was_surveyed(architecture, cache, surveys, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", architecture)
    first = valuembed.info(folder)
    assert len(kept(cache)) == 1
    assert valuembed.info(folder) == first
    assert valuembed.info(folder, "va", layers="all").recipe.method == "va"
    assert surveys == [str(folder)]


def test_what_is_known_of_the_bundled_model_is_true():
    recorded = json.loads(BUNDLED_FACTS.read_text())
    assert recorded == json.loads(json.dumps(trace_facts(locate("bundled")).to_dict()))


def test_another_configuration_is_surveyed_anew(cache, surveys, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    before = valuembed.info(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    assert (before.num_layers, valuembed.info(folder).num_layers) == (4, 3)
    assert len(surveys) == len(kept(cache)) == 2


def test_another_release_of_transformers_is_asked_anew(cache, surveys, folder, monkeypatch):
    valuembed.info(folder)
    facts_cache._versions.cache_clear()
    monkeypatch.setattr(facts_cache, "version", lambda package: "0.0")
    valuembed.info(folder)
    facts_cache._versions.cache_clear()
    assert len(surveys) == len(kept(cache)) == 2


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"anatomy": {}, "preset": null, "dtype": null, "vocabulary": 1}'])
def test_a_damaged_file_is_made_anew(damaged, cache, surveys, folder):
    first = valuembed.info(folder)
    (path,) = kept(cache)
    path.write_text(damaged)
    assert valuembed.info(folder) == first
    assert len(surveys) == 2
    assert json.loads(path.read_text())["decoder_spec"]["num_layers"] == 4


def test_a_place_that_cannot_be_written_changes_nothing(folder, surveys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for place in (str(tmp_path / "file" / "cache"), ""):
        monkeypatch.setenv("VALUEMBED_CACHE", place)
        assert valuembed.info(folder).num_layers == 4
    assert len(surveys) == 2


def test_nothing_is_kept_where_a_checkpoint_brings_code(cache, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Model"}}))
    assert valuembed.info(folder).num_layers == 4
    assert kept(cache) == []


@pytest.mark.process
def test_once_known_a_model_is_told_of_without_torch(cache, folder):
    width = valuembed.info(folder).width
    script = (
        "import sys, valuembed\n"
        "print(valuembed.info(sys.argv[1]).width, valuembed.info('bundled', 'va', layers='half').chosen_layers)\n"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [f"{width} (6, 7, 8, 9, 10, 11)", "[]"]
