"""Saving into a folder that holds an earlier save: what comes back is the later one, whoever reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import valuembed
from valuembed.backbone.checkpoints.weight_files import remove_saved
from valuembed.errors import CheckpointError, OutputError
from valuembed.models.encoder import ValueEncoder
from valuembed.testing import tiny_causal_lm, tiny_checkpoint

pytestmark = pytest.mark.slow

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TEXTS = ["a text", "another one"]


@pytest.fixture
def in_shards(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From here on every save is cut into shards; undone by the fixture's `undo`."""
    split = transformers.modeling_utils.split_torch_state_dict_into_shards
    whole = lambda weights, *, filename_pattern, max_shard_size: split(  # noqa: E731
        weights, filename_pattern=filename_pattern, max_shard_size="20KB"
    )
    monkeypatch.setattr(transformers.modeling_utils, "split_torch_state_dict_into_shards", whole)
    return monkeypatch


def comes_back(model: ValueEncoder, folder: Path) -> None:
    """Everyone reads the model from its folder, and the folder holds one set of weights."""
    expected = model.encode(TEXTS)
    assert abs(valuembed.load(folder).encode(TEXTS) - expected).max() < 1e-6
    plain = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert abs(plain.encode(TEXTS) - expected).max() < 1e-6
    theirs = AutoModel.from_pretrained(folder).get_input_embeddings().weight
    assert torch.equal(theirs, model.reader.model.get_input_embeddings().weight)
    assert (folder / SINGLE).exists() != (folder / INDEX).exists()


@pytest.fixture
def models(tmp_path: Path) -> list[ValueEncoder]:
    return [valuembed.load(tiny_checkpoint(tmp_path / f"m{seed}", seed=seed), "va") for seed in (1, 2)]


def test_one_file_over_shards(models, tmp_path, in_shards):
    models[0].save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / INDEX).exists()
    comes_back(models[0], tmp_path / "saved")
    in_shards.undo()
    models[1].save_pretrained(str(tmp_path / "saved"))
    assert [file.name for file in (tmp_path / "saved").glob("model*")] == [SINGLE]
    comes_back(models[1], tmp_path / "saved")


def test_shards_over_one_file(models, tmp_path, request):
    models[0].save_pretrained(str(tmp_path / "saved"))
    request.getfixturevalue("in_shards")
    models[1].save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / SINGLE).exists()
    comes_back(models[1], tmp_path / "saved")


def test_a_model_over_the_folder_that_it_was_loaded_from(models, tmp_path):
    models[0].save_pretrained(str(tmp_path / "saved"))
    again = valuembed.load(tmp_path / "saved")
    expected = again.encode(TEXTS)
    again.save_pretrained(str(tmp_path / "saved"))
    assert abs(again.encode(TEXTS) - expected).max() == 0.0
    comes_back(again, tmp_path / "saved")


def test_what_transformers_left_of_a_sharded_folder(models, tmp_path, in_shards):
    models[0].save_pretrained(str(tmp_path / "saved"))
    in_shards.undo()
    models[1].reader.model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / INDEX).exists()
    expected = models[1].encode(TEXTS)
    assert abs(valuembed.load(tmp_path / "saved").encode(TEXTS) - expected).max() < 1e-6


def test_files_of_another_tokenizer_do_not_stay(tmp_path):
    chat = valuembed.load(tiny_checkpoint(tmp_path / "chat", tokenizer="chat"), "va")
    plain = valuembed.load(tiny_checkpoint(tmp_path / "plain"), "va")
    chat.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "chat_template.jinja").exists()
    (tmp_path / "saved" / "mine.txt").write_text("notes")
    plain.save_pretrained(str(tmp_path / "saved"))
    assert valuembed.load(tmp_path / "saved").tokenizer.chat_template is None
    assert (tmp_path / "saved" / "mine.txt").exists()


def test_files_that_are_no_earlier_save_of_ours_stay(models, tmp_path):
    (tmp_path / "saved").mkdir()
    for name in ("tokenizer.model", "pytorch_model.bin", "model.fp16.safetensors"):
        (tmp_path / "saved" / name).write_bytes(b"theirs")
    models[0].save_pretrained(str(tmp_path / "saved"))
    for name in ("tokenizer.model", "pytorch_model.bin", "model.fp16.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == b"theirs"


def with_adapter(model: ValueEncoder) -> ValueEncoder:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    return model


def test_an_adapter_over_weights_and_weights_over_an_adapter(models, tmp_path):
    folder = tmp_path / "saved"
    bundled = valuembed.load("bundled", "va")
    bundled.save_pretrained(str(folder))
    adapted = with_adapter(valuembed.load("bundled", "va"))
    adapted.save_pretrained(str(folder))
    assert not (folder / SINGLE).exists(), "the base is fetched by name, and old weights would be taken for it"
    assert abs(valuembed.load(folder).encode(TEXTS) - adapted.encode(TEXTS)).max() < 1e-6
    models[0].save_pretrained(str(folder))
    assert list(folder.glob("adapter*")) == []
    comes_back(models[0], folder)


def test_a_record_that_another_save_made_stale_is_refused(models, tmp_path):
    folder = tmp_path / "saved"
    models[0].save_pretrained(str(folder))
    tiny_causal_lm("qwen3", num_hidden_layers=2).save_pretrained(folder)
    says = r"valuembed_config\.json is of an earlier save; delete it .*: it records 4 layers, and config\.json 2"
    with pytest.raises(CheckpointError, match=says):
        valuembed.load(folder)
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[0]["type"] = "sentence_transformers.models.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(
        CheckpointError, match=r"earlier save; .*modules\.json names sentence_transformers\.models\.Tran"
    ):
        valuembed.info(folder)


def test_what_cannot_be_removed_is_named(tmp_path):
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(OutputError, match=rf"{SINGLE} of an earlier save cannot be removed from {tmp_path}"):
        remove_saved(str(tmp_path), SINGLE)
