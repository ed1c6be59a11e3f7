"""load, save, info: what a user sees of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_models import assert_close, assert_same_vectors, assert_saved_alike
from sentence_transformers import SentenceTransformer
from some_texts import some_texts

from valuembed.errors import CheckpointError, InputError, LayerError, RecipeError, TemplateError
from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.models.model_info import info
from valuembed.recipes.methods import METHODS, PURPOSES
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

WIDTHS = {"va": 16, "aligned_va": 32, "wva": 32, "aligned_wva": 32, "joined": 32 + 16 + 16}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_unit_vectors_of_its_width(folder: Path, method: str) -> None:
    model = load(folder, method)
    vectors = model.encode(["a cat", "a dog runs"])
    assert isinstance(model, SentenceTransformer)
    assert vectors.shape == (2, WIDTHS.get(method, 32)) == (2, model.get_embedding_dimension())
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_purpose_stands_for_a_method(folder: Path) -> None:
    for purpose, recipe in PURPOSES.items():
        model = load(folder, purpose=purpose)
        assert model.recipe.method == purpose
        assert_same_vectors(model, load(folder, recipe), ["x", "one two"])
        assert_same_vectors(model, load(folder, purpose), ["x", "one two"])


def test_a_purpose_that_cannot_be(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(folder, purpose="fun")
    assert str(caught.value) == "purpose 'fun' is unknown; give one of similarity, search, clustering"
    with pytest.raises(RecipeError) as caught:
        load(folder, "va", purpose="search")
    assert str(caught.value) == "purpose='search' stands for a method, and one is given too; give one"


def test_roles_have_templates_of_their_own(folder: Path, tmp_path: Path) -> None:
    model = load(folder, "aligned_wva", template={"query": "future_eol", "document": "{text}!"})
    auto = load(folder, "aligned_wva")
    assert_same_vectors(model, auto, ["x"])
    assert_close(model.encode_query(["x"]), load(folder, template="future_eol").encode(["x"]))
    assert_close(model.encode_document(["x"]), load(folder, template="{text}!").encode(["x"]))
    model.save_pretrained(str(tmp_path))
    again = load(tmp_path)
    assert_saved_alike(model, again, ["x"])
    assert_close(again.encode_query(["x"]), model.encode_query(["x"]))


def reload_both_ways(model: ValueEncoder, saved: Path) -> None:
    texts = some_texts(6)
    model.save_pretrained(str(saved))
    assert_saved_alike(model, load(saved), texts)
    plain = SentenceTransformer(str(saved), trust_remote_code=True)
    assert type(plain) is SentenceTransformer
    assert_same_vectors(plain, model, texts)


# What is saved of a decoder does not depend on the recipe but for its layers: the second one takes a method a signal.
@pytest.mark.parametrize(
    ("source", "method"),
    [*(("folder", method) for method in METHODS), *(("sliding", one) for one in ("va", "aligned_wva", "hidden_mean"))],
)
def test_save_and_load_give_the_same_vectors(
    source: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reload_both_ways(load(request.getfixturevalue(source), method, prompts={"query": "q: "}), tmp_path / "saved")


def test_a_saved_folder_keeps_its_recipe_unless_asked(folder: Path, tmp_path: Path) -> None:
    load(folder, "va", layers=[0, 2], max_tokens=77).save_pretrained(str(tmp_path))
    kept = load(tmp_path)
    assert (kept.recipe.method, kept.recipe.layers, kept.max_seq_length) == ("va", (0, 2), 77)
    # The default written out is a wish, not an omission.
    assert load(tmp_path, "aligned_wva", layers=[1]).recipe == load(folder, "aligned_wva", layers=[1]).recipe
    texts = ["sun", "rain fell", "a quiet town"]
    assert_same_vectors(load(tmp_path, "wva", layers=[1, 2]), load(folder, "wva", layers=[1, 2]), texts)


def test_a_saved_folder_names_its_source_when_layers_are_gone(folder: Path, tmp_path: Path) -> None:
    load(folder, "va", layers=[1]).save_pretrained(str(tmp_path))
    held = "this folder was saved with layers 0-1 of 4"
    gone = rf"layers=\[3\] means layer 3, and layer 3 is not here: {held}; load 'tiny' instead"
    with pytest.raises(CheckpointError, match=gone):
        load(tmp_path, layers=[3])
    for spec in ("all", "half", 1.0, "0.5:1.0"):
        with pytest.raises(CheckpointError, match=f"{held}; load 'tiny' instead"):
            load(tmp_path, layers=spec)
    assert load(tmp_path, layers="0.0:0.5").recipe.layers == load(folder, layers="0.0:0.5").recipe.layers == (0, 1)
    norm = f"{held} and without the final norm, which hidden_mean reads; load 'tiny'"
    with pytest.raises(CheckpointError, match=norm):
        load(tmp_path, "hidden_mean")


def test_normalisation_can_be_left_out_and_taken_off(folder: Path, tmp_path: Path) -> None:
    raw = load(folder, "va", normalize=False)
    assert len(raw) == 1
    load(folder, "va").save_pretrained(str(tmp_path))
    assert_saved_alike(raw, load(tmp_path, normalize=False), ["a b"])


def test_the_saved_card_holds_code_that_works(folder: Path, tmp_path: Path) -> None:
    load(folder, "va", prompts={"query": "find: "}).save_pretrained(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "layers held here | 4 of 4" in card
    assert "`query`: 'find: '" in card
    assert str(folder.parent) not in card
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("path-or-hub-id-of-this-model", str(tmp_path)), {})


def test_push_to_hub_uploads_what_save_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Commit:
        commit_url = "https://example.invalid/commit"
        pr_url = None

    def upload(self: Any, *, folder_path: str, repo_id: str, **_: Any) -> Commit:
        uploaded.update(repo=repo_id, files={path.name for path in Path(folder_path).iterdir()})
        return Commit()

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})()
    )
    load(folder, "va").push_to_hub("someone/tiny-va")
    assert uploaded["repo"] == "someone/tiny-va"
    assert {"README.md", "config.json", "model.safetensors", "modules.json", "valuembed_config.json"} <= uploaded[
        "files"
    ]


def test_a_card_written_by_hand_is_kept(folder: Path, tmp_path: Path) -> None:
    load(folder, "va").save_pretrained(str(tmp_path / "a"))
    load(tmp_path / "a", layers=[1]).save_pretrained(str(tmp_path / "b"))
    assert "| layers read | 1 |" in (tmp_path / "b" / "README.md").read_text()
    (tmp_path / "b" / "README.md").write_text("My own words.")
    load(tmp_path / "b").save_pretrained(str(tmp_path / "c"))
    assert (tmp_path / "c" / "README.md").read_text() == "My own words."


def test_a_saved_folder_on_a_hub_is_read_as_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, "va").save_pretrained(str(tmp_path))
    seen: dict[str, Any] = {}
    restore = ValueEncoder._load_with_module_classes.__func__

    def noted(cls: Any, location: str, classes: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return restore(cls, location, classes, **kwargs)

    monkeypatch.setattr(ValueEncoder, "_load_with_module_classes", classmethod(noted))
    load(tmp_path, revision="v2", token="t", cache_folder="c", local_files_only=True, device="cpu")
    assert (seen["revision"], seen["token"], seen["cache_folder"], seen["local_files_only"]) == ("v2", "t", "c", True)


@pytest.mark.parametrize("damage", ["{}", "[]", '{"recipe": {"signal": "value", "weights": "mean"}}', "not json"])
def test_a_damaged_record_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    load(folder, "va").save_pretrained(str(tmp_path))
    (tmp_path / "valuembed_config.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"valuembed_config\.json cannot be used: "):
        load(tmp_path)


def test_half_precision_that_was_saved_is_raised_where_it_is_slow(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, "va", dtype="float16").save_pretrained(str(tmp_path))
    monkeypatch.setattr("valuembed.backbone.dtypes.has_fast", lambda dtype, device: False)
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, dtype="float16").dtype == torch.float16


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(RecipeError, match="method 'vaa' is unknown; give one of va, aligned_va, wva, aligned_wva"):
        load(folder, "vaa")
    with pytest.raises(LayerError, match=r"layers=\[9\]: layer 9 cannot be read .* 4 layers; legal layers are 0-3"):
        load(folder, layers=[9])
    with pytest.raises(TemplateError, match="template 'prompt_oel' is unknown; give one of none, prompt_eol"):
        load(folder, template="prompt_oel")
    with pytest.raises(
        RecipeError, match="dtype='float99' is unknown; legal: auto, float32, bfloat16, float16, float64"
    ):
        load(folder, dtype="float99")
    with pytest.raises(
        InputError, match=r"prompt '.udc00' cannot be embedded: it is not valid Unicode: lone surrogate"
    ):
        load(folder, "va").encode(["a"], prompt="\udc00")
    with pytest.raises(RecipeError, match="max_tokens='64' has to be a whole number"):
        load(folder, max_tokens="64")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="prompts: 'query' is not a string"):
        load(folder, prompts={"query": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="processing_kwargs cannot be used: texts are cut by max_tokens"):
        load(folder).encode(["a"], processing_kwargs={"text": {"max_length": 4}})
    with pytest.raises(RecipeError, match="signal='hidden' with alignment='projection' means nothing"):
        load(folder, {"signal": "hidden", "weights": "mean", "alignment": "projection"})


def test_a_recipe_of_ones_own(folder: Path) -> None:
    recipe = Recipe(signal="value", weights="last", layers=(0, 3), template=("so: {text}",), method="mine")
    assert load(folder, recipe).encode(["a"]).shape == (1, 32)
    assert_same_vectors(load(folder, recipe.to_dict()), load(folder, recipe), ["a"])


def test_info_reads_no_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    seen = info(tmp_path, "aligned_wva", layers=[1, 2])
    assert (seen.num_layers, seen.value_layers, seen.kept_layers) == (4, (0, 1, 2, 3), 3)
    assert (seen.query_heads, seen.value_heads, seen.head_width, seen.model_width, seen.width) == (4, 2, 8, 32, 32)
    assert seen.not_loaded == ("layer 3", "the final norm", "the language model head")
    loaded = load(folder, "aligned_wva", layers=[1, 2])
    assert seen.weight_bytes == sum(p.numel() * p.element_size() for p in loaded.parameters())
    assert seen.to_dict()["recipe"]["layers"] == [1, 2]
