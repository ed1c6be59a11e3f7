"""load, encode, save: what a user sees."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from valuembed.encoder import BlankTextWarning, EncodeReport, TruncationWarning, ValueEncoder
from valuembed.errors import CheckpointError, InputError, LayerError, ReadingError, RecipeError, TemplateError
from valuembed.model import info, load
from valuembed.recipes import METHODS, Recipe
from valuembed.testing import tiny_checkpoint

WORDS = ["the", "sun", "rose", "over", "a", "quiet", "town", "while", "nobody", "watched", "rain", "fell", "again"]
WIDTHS = {"va": 16, "aligned_va": 32, "wva": 32, "aligned_wva": 32}


def some_texts(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen3", tokenizer="byte_level_bos")


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "sliding", "gemma3_text", tokenizer="metaspace_bos")


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_unit_vectors_of_its_width(folder: Path, method: str) -> None:
    model = load(folder, method)
    vectors = model.encode(["a cat", "a dog runs"])
    assert isinstance(model, SentenceTransformer)
    assert vectors.shape == (2, WIDTHS.get(method, 32)) == (2, model.get_embedding_dimension())
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_a_text_alone_is_the_text_in_any_batch_in_any_order(
    source: str, method: str, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(source), method, normalize=False)
    texts = some_texts(64)
    together = model.encode(texts)
    order = np.random.default_rng(1).permutation(64)
    shuffled = model.encode([texts[i] for i in order])
    alone = np.stack([model.encode(text) for text in texts[:8]])
    scale = np.linalg.norm(together, axis=1, keepdims=True)
    assert (abs(shuffled - together[order]) / scale[order]).max() < 1e-5
    assert (abs(alone - together[:8]) / scale[:8]).max() < 1e-5


@pytest.mark.parametrize("method", ["va", "aligned_wva"])
def test_in_bfloat16_a_text_alone_is_nearly_the_text_in_a_batch(folder: Path, method: str) -> None:
    model = load(folder, method, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    texts = some_texts(64)
    alone = np.stack([model.encode(text) for text in texts])
    assert cosine(alone, model.encode(texts)).min() > 0.999


def test_more_texts_than_a_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, "va")
    texts = some_texts(23)
    expected = model.encode(texts)
    monkeypatch.setattr("valuembed.encoder.TEXTS_PER_WINDOW", 5)
    assert abs(model.encode(texts) - expected).max() < 1e-6
    assert model.report is not None
    assert model.report.texts == 23


def test_no_texts_have_a_width(folder: Path) -> None:
    model = load(folder, "va")
    assert model.encode([]).shape == (0, 16)
    assert model.encode([]).dtype == np.float32
    assert model.encode(np.array([], dtype="U1")).shape == (0, 16)
    assert model.encode([], convert_to_tensor=True).shape == (0, 16)
    assert model.encode([], truncate_dim=4).shape == (0, 4)
    assert model.encode([], precision="ubinary").shape == (0, 2)
    assert model.encode([], convert_to_numpy=False) == []
    with model.truncate_embeddings(6):
        assert model.encode([]).shape == (0, 6)
    assert model.encode_query([]).shape == (0, 16)
    assert model.report == EncodeReport(0, 0, 0, 0)


def test_outputs_as_in_any_sentence_transformer(folder: Path) -> None:
    model = load(folder, "va")
    texts = ["a cat", "a dog runs", "rain"]
    vectors = model.encode(texts)
    assert torch.equal(model.encode(texts, convert_to_tensor=True), torch.from_numpy(vectors))
    assert [v.shape for v in model.encode(texts, convert_to_numpy=False)] == [(16,)] * 3
    assert model.encode("a cat").shape == (16,)
    assert model.encode(texts, truncate_dim=4).shape == (3, 4)
    short = model.encode(texts, truncate_dim=4, normalize_embeddings=True)
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert model.encode(texts, precision="ubinary").shape == (3, 2)
    assert model.encode(texts, precision="int8").dtype == np.int8
    everything = model.encode(texts, output_value=None)
    assert np.allclose(torch.stack([item["sentence_embedding"] for item in everything]), vectors, atol=1e-6)
    with pytest.raises(RecipeError, match="output_value='token_embeddings': a recipe reads one vector a text"):
        model.encode(texts, output_value="token_embeddings")


def test_several_processes_give_the_same_vectors_and_one_report(folder: Path) -> None:
    model = load(folder, "aligned_wva", max_tokens=60)
    texts = [*[f"rain fell {i}" for i in range(28)], "rain " * 70, "sun " * 80]
    with pytest.warns(TruncationWarning, match="2 of 30 texts were cut"):
        expected = model.encode(texts)
    alone = model.report
    with pytest.warns(TruncationWarning, match="2 of 30 texts were cut") as caught:
        together = model.encode(texts, device=["cpu", "cpu"], chunk_size=10)
    assert abs(together - expected).max() < 1e-6
    assert model.report == alone
    assert len(caught) == 1
    with pytest.raises(InputError, match="row 29 is not a string but int"):
        model.encode([*texts[:29], 7], device=["cpu", "cpu"], chunk_size=10)


def test_cut_texts_are_counted_and_warned_about_once(folder: Path) -> None:
    model = load(folder, "aligned_wva", max_tokens=40)
    with pytest.warns(TruncationWarning) as caught:
        model.encode(["rain " * 60, "short", "sun " * 70])
    assert len(caught) == 1
    assert str(caught[0].message).startswith("2 of 3 texts were cut to fit max_tokens=40")
    assert caught[0].filename == __file__
    assert model.report is not None
    assert (model.report.texts, model.report.truncated) == (3, 2)
    with warnings.catch_warnings(action="error"):
        model.encode(["short"])
    assert model.report.truncated == 0


def test_blank_texts_are_the_template_around_nothing(folder: Path) -> None:
    model = load(folder, "aligned_wva", normalize=False)
    with pytest.warns(BlankTextWarning, match="2 of 3 texts are blank"):
        vectors = model.encode(["", "a", " \n"])
    assert np.array_equal(vectors[0], vectors[2])
    around = '{text}This sentence : "" means in one word:"'
    around_nothing = load(folder, "aligned_wva", normalize=False, template=around)
    with pytest.warns(BlankTextWarning):
        assert np.allclose(around_nothing.encode([""])[0], vectors[0], atol=1e-5)
    assert model.report is not None
    assert model.report.blank == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 5, "b"], "1 of 3 texts cannot be embedded: row 1 is not a string but int"),
        ([None], "row 0 is not a string but NoneType"),
        (["ok", "bad \ud800"], "row 1 is not valid Unicode: lone surrogate U\\+D800 at character 4"),
        (["nul \0 inside"], "row 0 is not text: NUL character at character 4"),
        (["x" * 1_000_000], "row 0 is 1,000,000 bytes long; a text has to be shorter than 1,000,000 bytes"),
        ([1, 2, 3, 4, 5, 6, 7], "7 of 7 texts .* row 4 is not a string but int; and 2 more"),
        ([("a", "b")], "row 0 is not a string but tuple"),
    ],
)
def test_what_is_no_text_is_named_by_row(folder: Path, texts: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(folder, "va").encode(texts)


def test_an_embedding_that_is_not_finite_is_an_error_that_names_its_rows(folder: Path) -> None:
    model = load(folder, "va")
    token = model.tokenizer("#")["input_ids"][-1]
    model.reader.model.embed_tokens.weight.data[token] = float("nan")
    with pytest.raises(
        ReadingError, match=r"the embedding of 2 texts is not finite .* rows 1, 3; the weights are damaged"
    ):
        model.encode(["rain", "#", "town", "the #"])


def test_instructions_go_before_the_template_or_to_its_slot(folder: Path) -> None:
    prompts = {"query": "find: ", "document": "", "task": "sort: "}
    before = load(folder, "va", template="<{text}>", prompts=prompts)
    ids = before.tokenizer
    assert before.preprocess(["x"], prompt="find: ")["input_ids"][0].tolist() == ids("find: <x>")["input_ids"]
    slot = load(folder, "va", template="<{prompt}|{text}>", prompts=prompts)
    assert slot.preprocess(["x"], prompt="find: ")["input_ids"][0].tolist() == ids("<find: |x>")["input_ids"]
    assert np.array_equal(slot.encode(["x"], prompt="find: "), slot.encode_query(["x"]))
    assert np.array_equal(slot.encode(["x"], prompt_name="task"), slot.encode(["x"], prompt="sort: "))
    assert not np.array_equal(slot.encode(["x"]), slot.encode_query(["x"]))


def test_an_instruction_is_no_part_of_a_text_mean(folder: Path) -> None:
    model = load(folder, "va", normalize=False)
    features = model.preprocess(["x y z"], prompt="instruction ")
    start, end = features["text_span"][0].tolist()
    assert model.tokenizer.decode(features["input_ids"][0][start:end]).strip() == "x y z"


def test_roles_have_templates_of_their_own(folder: Path, tmp_path: Path) -> None:
    model = load(folder, "aligned_wva", template={"query": "future_eol", "document": "{text}!"})
    auto = load(folder, "aligned_wva")
    assert np.array_equal(model.encode(["x"]), auto.encode(["x"]))
    assert np.array_equal(model.encode_query(["x"]), load(folder, template="future_eol").encode(["x"]))
    assert np.array_equal(model.encode_document(["x"]), load(folder, template="{text}!").encode(["x"]))
    model.save_pretrained(str(tmp_path))
    assert np.array_equal(load(tmp_path).encode_query(["x"]), model.encode_query(["x"]))


def reload_both_ways(model: ValueEncoder, saved: Path) -> None:
    texts = some_texts(6)
    expected = model.encode(texts)
    model.save_pretrained(str(saved))
    assert abs(load(saved).encode(texts) - expected).max() == 0.0
    plain = SentenceTransformer(str(saved), trust_remote_code=True)
    assert type(plain) is SentenceTransformer
    # The same arithmetic in steps of other rows: equal up to the last bits.
    assert abs(plain.encode(texts) - expected).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_save_and_load_give_the_same_vectors(
    source: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reload_both_ways(load(request.getfixturevalue(source), method, prompts={"query": "q: "}), tmp_path / "saved")


def add_adapter(model: ValueEncoder) -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["v_proj", "o_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize("method", ["va", "aligned_va", "aligned_wva"])
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_an_adapter_on_a_local_model_is_saved_with_it(
    source: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(source), method)
    before = model.encode(some_texts(6))
    add_adapter(model)
    assert abs(model.encode(some_texts(6)) - before).max() > 1e-3
    reload_both_ways(model, tmp_path / "saved")
    written = (tmp_path / "saved" / "adapter_config.json").read_text()
    assert str(request.getfixturevalue(source).parent) not in written


def test_an_adapter_on_the_bundled_model_is_saved_alone(tmp_path: Path) -> None:
    model = load("bundled", "va")
    add_adapter(model)
    reload_both_ways(model, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*.safetensors"))
    assert '"base_model_name_or_path": "bundled"' in (tmp_path / "saved" / "adapter_config.json").read_text()


def test_a_saved_folder_keeps_its_recipe_unless_asked(folder: Path, tmp_path: Path) -> None:
    load(folder, "va", layers=[0, 2], max_tokens=77).save_pretrained(str(tmp_path))
    kept = load(tmp_path)
    assert (kept.recipe.method, kept.recipe.layers, kept.max_seq_length) == ("va", (0, 2), 77)
    # The default written out is a wish, not an omission.
    assert load(tmp_path, "aligned_wva", layers=[1]).recipe == load(folder, "aligned_wva", layers=[1]).recipe
    texts = ["sun", "rain fell", "a quiet town"]
    other = load(tmp_path, "wva", layers=[1, 2]).encode(texts)
    assert abs(other - load(folder, "wva", layers=[1, 2]).encode(texts)).max() == 0.0


def test_a_saved_folder_names_its_source_when_layers_are_gone(folder: Path, tmp_path: Path) -> None:
    load(folder, "va", layers=[1]).save_pretrained(str(tmp_path))
    gone = (
        r"layers=\[3\]: layer 3 cannot be read .* legal layers are 0-1; it was saved with layers 0-1 of 4; load 'tiny'"
    )
    with pytest.raises(CheckpointError, match=gone):
        load(tmp_path, layers=[3])
    norm = "this folder holds no final norm, which hidden_mean reads: it was saved with layers 0-1 of 4; load 'tiny'"
    with pytest.raises(CheckpointError, match=norm):
        load(tmp_path, "hidden_mean")


def test_normalisation_can_be_left_out_and_taken_off(folder: Path, tmp_path: Path) -> None:
    raw = load(folder, "va", normalize=False)
    assert len(raw) == 1
    load(folder, "va").save_pretrained(str(tmp_path))
    assert np.array_equal(load(tmp_path, normalize=False).encode(["a b"]), raw.encode(["a b"]))


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
    with pytest.raises(RecipeError, match="signal='hidden' with aligned=True means nothing"):
        load(folder, {"signal": "hidden", "weights": "mean", "aligned": True})


def test_a_recipe_of_ones_own(folder: Path) -> None:
    recipe = Recipe(signal="value", weights="last", layers=(0, 3), template=("so: {text}",), method="mine")
    assert load(folder, recipe).encode(["a"]).shape == (1, 32)
    assert np.array_equal(load(folder, recipe.to_dict()).encode(["a"]), load(folder, recipe).encode(["a"]))


def test_info_reads_no_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    seen = info(tmp_path, "aligned_wva", layers=[1, 2])
    assert (seen.num_layers, seen.value_layers, seen.kept_layers) == (4, (0, 1, 2, 3), 3)
    assert (seen.query_heads, seen.value_heads, seen.head_width, seen.model_width, seen.width) == (4, 2, 8, 32, 32)
    assert seen.not_loaded == ("layers 3", "the final norm", "the language model head")
    loaded = load(folder, "aligned_wva", layers=[1, 2])
    assert seen.weight_bytes == sum(p.numel() * p.element_size() for p in loaded.parameters())
    assert seen.to_dict()["recipe"]["layers"] == [1, 2]
