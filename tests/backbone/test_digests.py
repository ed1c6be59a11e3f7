"""A fingerprint changes with what decides a vector, and with nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import watching
from watching import COMMIT, fake_hub

import valuembed
from valuembed.backbone.checkpoints.location import Checkpoint, locate
from valuembed.backbone.digests import content_digest, fingerprint, tensors_digest
from valuembed.errors import CheckpointError
from valuembed.recipes.methods import METHODS


def digest(folder: Path) -> str:
    return content_digest(locate(folder))


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_is_that_of_the_content_and_not_of_the_place(folder, copy):
    assert digest(copy) == digest(folder)
    (copy / "README.md").write_text("A word about it.")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "x.json").write_text("{}")
    assert digest(copy) == digest(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_changes_with_one_byte(folder, copy, file):
    data = bytearray((copy / file).read_bytes())
    data[-1] ^= 1
    (copy / file).write_bytes(data)
    assert digest(copy) != digest(folder)


def test_changes_with_a_later_module(folder, tmp_path):
    valuembed.load(folder, "va").save_pretrained(str(tmp_path / "saved"))
    before = digest(tmp_path / "saved")
    module = next((tmp_path / "saved").glob("*_Normalize"))
    module.mkdir(exist_ok=True)
    (module / "config.json").write_text('{"x": 1}')
    assert digest(tmp_path / "saved") != before


def test_of_a_hub_id_is_its_commit_and_reads_no_weights(folder, tmp_path):
    with fake_hub("someone/tiny", folder) as hub:
        first = content_digest(locate("someone/tiny", cache_folder=str(tmp_path)))
        assert content_digest(locate("someone/tiny", revision=COMMIT, cache_folder=str(tmp_path))) == first
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_an_adapter_counts_with_its_base(folder, tmp_path):
    from peft import LoraConfig

    saved = tmp_path / "adapter"
    model = valuembed.load("bundled", "va")
    model.add_adapter(LoraConfig(r=2, target_modules=["v_proj"]))
    model.save_pretrained(str(saved))
    with_bundled = digest(saved)
    assert with_bundled != content_digest(locate("bundled"))
    assert with_bundled == digest(saved)


def test_an_adapter_with_its_base_beside_it(folder, tmp_path):
    from peft import LoraConfig

    saved = tmp_path / "adapter"
    model = valuembed.load(folder, "va")
    model.add_adapter(LoraConfig(r=2, target_modules=["v_proj"]))
    model.save_pretrained(str(saved))
    before = digest(saved)
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    assert digest(saved) != before


def test_a_hub_adapter_without_a_configuration_of_its_own_is_its_commit(tmp_path, monkeypatch):
    held = tmp_path / "held"
    held.mkdir()
    (held / "adapter_config.json").write_text('{"base_model_name_or_path": "bundled"}')
    found = set()
    for commit in (COMMIT, COMMIT[::-1]):
        monkeypatch.setattr(watching, "COMMIT", commit)
        with fake_hub("me/adapter", held):
            checkpoint = locate("me/adapter", cache_folder=str(tmp_path / commit))
            assert checkpoint.commit == commit
            found.add(content_digest(checkpoint))
    assert len(found) == 2


def test_a_hub_id_whose_commit_is_not_known_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "commit", None)
    with (
        fake_hub("someone/tiny", folder),
        pytest.raises(
            CheckpointError, match=r"model 'someone/tiny': its commit is not known, .* name that, or keep no"
        ),
    ):
        content_digest(locate("someone/tiny", cache_folder=str(tmp_path)))


def test_of_tensors_is_that_of_their_numbers():
    def made(*numbers, shape=(2,), dtype=torch.float32, name="a"):
        module = torch.nn.Module()
        module.register_buffer(name, torch.tensor(numbers, dtype=dtype).reshape(shape))
        return tensors_digest(module)

    assert made(1, 2) == made(1, 2)
    others = [made(1, 3), made(1, 2, shape=(1, 2)), made(1, 2, dtype=torch.int32), made(1, 2, name="b")]
    assert len({made(1, 2), *others}) == 5


def test_recipe_and_settings_count_and_the_name_of_a_method_does_not():
    va = METHODS["va"]
    made = fingerprint("content", va, dtype="float32")
    assert len(made) == 16
    assert int(made, 16) >= 0
    assert fingerprint("content", replace(va, method="mine"), dtype="float32") == made
    others = [
        fingerprint("other", va, dtype="float32"),
        fingerprint("content", replace(va, layers=(1,)), dtype="float32"),
        fingerprint("content", replace(va, cleaning="sentence"), dtype="float32"),
        fingerprint("content", va, dtype="bfloat16"),
        fingerprint("content", va, dtype="float32", max_tokens=9),
    ]
    assert len({made, *others}) == 6
