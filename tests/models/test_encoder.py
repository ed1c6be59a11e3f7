"""encode: what a user sees of one call, in any batch, order, thread or process."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from some_texts import some_texts

from valuembed._utils.progress import watching_steps
from valuembed.errors import BlankTextWarning, InputError, ReadingError, RecipeError, TruncationWarning
from valuembed.execution.report import EncodeReport
from valuembed.models.loading import load
from valuembed.recipes.methods import METHODS

pytestmark = pytest.mark.slow


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_a_text_alone_is_the_text_in_any_batch_in_any_order(
    source: str, method: str, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(source), method, normalize=False)
    texts = some_texts(24)
    together = model.encode(texts)
    order = np.random.default_rng(1).permutation(24)
    shuffled = model.encode([texts[i] for i in order])
    alone = np.stack([model.encode(text) for text in texts[:8]])
    scale = np.linalg.norm(together, axis=1, keepdims=True)
    assert (abs(shuffled - together[order]) / scale[order]).max() < 1e-5
    assert (abs(alone - together[:8]) / scale[:8]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["va", "aligned_wva"])
def test_in_bfloat16_a_text_alone_is_nearly_the_text_in_a_batch(folder: Path, method: str) -> None:
    model = load(folder, method, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    texts = some_texts(32)
    alone = np.stack([model.encode(text) for text in texts])
    assert cosine(alone, model.encode(texts)).min() > 0.999


def test_more_texts_than_a_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, "va")
    texts = some_texts(23)
    expected = model.encode(texts)
    monkeypatch.setattr("valuembed.execution.stream.TEXTS_PER_WINDOW", 5)
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
    assert model.encode([], output_value=None) == []
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


@pytest.mark.slow
@pytest.mark.process
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


@pytest.mark.slow
@pytest.mark.process
def test_a_saved_folder_serves_several_processes(folder: Path, tmp_path: Path) -> None:
    load(folder, "va").save_pretrained(str(tmp_path))
    model = load(tmp_path)
    texts = some_texts(6)
    assert abs(model.encode(texts, device=["cpu"], chunk_size=3) - model.encode(texts)).max() < 1e-6


@pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "hidden_mean"])
def test_several_threads_share_one_model(folder: Path, method: str) -> None:
    model = load(folder, method)
    texts = some_texts(12)
    expected = {text: model.encode(text) for text in texts}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.encode, texts * 3))
    for text, vector in zip(texts * 3, together, strict=True):
        assert abs(vector - expected[text]).max() < 1e-6


def test_a_failed_call_leaves_no_report(folder: Path) -> None:
    model = load(folder, "va")
    model.encode(["a"])
    with pytest.raises(InputError):
        model.encode(["a", 1])
    assert model.report is None


@pytest.mark.parametrize("call", ["encode", "encode_query", "encode_document"])
def test_texts_under_either_name_and_in_any_container(folder: Path, call: str) -> None:
    model = load(folder, "va")
    texts = ["a cat", "rain"]
    encode = getattr(model, call)
    expected = encode(texts)
    assert np.array_equal(encode(inputs=texts), expected)
    assert np.array_equal(encode(sentences=texts), expected)
    assert encode(sentences="rain").shape == (16,)
    for given in (
        tuple(texts),
        iter(texts),
        np.array(texts),
        pa.array(texts),
        pa.chunked_array([[texts[0]], ["rain"]]),
    ):
        assert np.array_equal(encode(given), expected)
    for one in (np.array("rain"), np.str_("rain"), pa.scalar("rain")):
        assert encode(one).shape == (16,)
    for nothing in ((), iter([]), np.array([]), pa.array([], pa.string())):
        assert encode(nothing).shape == (0, 16)
    with pytest.raises(InputError, match="set where texts are expected: a set has no order"):
        encode(set(texts))


def test_texts_are_given_once(folder: Path) -> None:
    model = load(folder, "va")
    with pytest.raises(InputError, match=r"^encode\(\) takes texts once, as inputs or by its older name sentences$"):
        model.encode(["a"], sentences=["a"])
    with pytest.raises(InputError, match=r"^encode\(\) takes texts once"):
        model.encode()


def test_options_by_place_as_in_any_sentence_transformer(folder: Path) -> None:
    model = load(folder, "va", prompts={"query": "find: "})
    # prompt_name, prompt, batch_size, show_progress_bar, output_value, precision
    assert np.array_equal(model.encode(["x"], "query", None, 8, False), model.encode_query(["x"]))
    by_place: tuple[Any, ...] = (None, None, 8, False, "sentence_embedding", "ubinary")
    assert model.encode([], *by_place).shape == (0, 2)
    assert model.encode([], *by_place[:5], "float32", True, False, None, False, 5).shape == (0, 5)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4"])
def test_a_width_that_is_none_is_refused(folder: Path, wrong: Any) -> None:
    model = load(folder, "va")
    with pytest.raises(InputError, match=f"^truncate_dim={wrong!r} has to be a whole number of at least 1$"):
        model.encode(["a"], truncate_dim=wrong)
    model.truncate_dim = wrong
    with pytest.raises(InputError, match="has to be a whole number of at least 1"):
        model.encode(["a"])


def test_an_unknown_output_is_refused(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^output_value='tokens' is unknown; legal: 'sentence_embedding', 'token_embeddings', and"
    ):
        load(folder, "va").encode(["a"], output_value="tokens")


def test_features_of_texts_in_any_container(folder: Path) -> None:
    model = load(folder, "va")
    expected = model.preprocess(["ab", "c"])["input_ids"]
    for given in (("ab", "c"), np.array(["ab", "c"]), pa.array(["ab", "c"])):
        assert torch.equal(model.preprocess(given)["input_ids"], expected)
        assert torch.equal(model.tokenize(given)["input_ids"], expected)
        assert torch.equal(model.reader.preprocess(given)["input_ids"], expected)
    # One text is one, not its letters.
    for vector_spec in (model.preprocess, model.tokenize, model.reader.preprocess):
        assert torch.equal(vector_spec("ab")["input_ids"], model.preprocess(["ab"])["input_ids"])


def test_a_model_is_called_with_features(folder: Path) -> None:
    model = load(folder, "va")
    found = model(model.preprocess(["a"]))["sentence_embedding"]
    assert torch.allclose(found, model.encode(["a"], convert_to_tensor=True))
    for texts in ("a", ["a"]):
        with pytest.raises(InputError, match=r"where features are expected: .* encode\(\) gives the vectors of texts"):
            model(texts)


def test_similarity_takes_vectors_of_any_kind(folder: Path) -> None:
    model = load(folder, "va")
    vectors = model.encode(["a cat", "rain", "a dog"])
    expected = vectors @ vectors.T
    for other in (
        torch.from_numpy(vectors),
        list(vectors),
        list(torch.from_numpy(vectors)),
        vectors.tolist(),
        vectors.astype(np.float64),
        vectors.astype(np.float16),
        torch.from_numpy(vectors).bfloat16(),
    ):
        for scores in (model.similarity(vectors, other), model.similarity(other, vectors)):
            assert abs(scores.float().numpy() - expected).max() < 5e-3
    # (3, 4) and (4, 3) have the cosine 24/25.
    assert model.similarity([[3, 4, 0]], np.array([[4, 3, 0]], np.int8)).tolist() == [[pytest.approx(0.96)]]
    assert model.similarity_pairwise([[3, 4]], [[4.0, 3.0]]).tolist() == [pytest.approx(0.96)]
    with pytest.raises(
        InputError, match=r"^similarity\(\) cannot compare packed bits: vectors of 2 bytes hold 16 bits"
    ):
        model.similarity(vectors, model.encode(["a", "b"], precision="ubinary"))
    with pytest.raises(InputError, match=r"cannot read \['a', 'b'\] as such; encode texts first"):
        model.similarity(["a", "b"], vectors)


def test_a_model_is_copied_pickled_and_moved_like_any_module(folder: Path) -> None:
    model = load(folder, "va")
    expected = model.encode(["a cat", "rain"])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu"), model.float()):
        assert abs(again.encode(["a cat", "rain"]) - expected).max() < 1e-6
    with torch.no_grad():
        assert abs(model.encode(["a cat", "rain"]) - expected).max() < 1e-6
    assert cosine(model.half().encode(["a cat", "rain"]), expected).min() > 0.999
    assert len(model) == 2
    model.max_seq_length = 12
    assert (model.max_seq_length, model.reader.max_tokens) == (12, 12)
    with pytest.warns(FutureWarning, match="renamed to `get_embedding_dimension`"):
        assert model.get_sentence_embedding_dimension() == 16


def test_later_modules_may_change_the_width(folder: Path) -> None:
    from sentence_transformers.base.modules import Dense

    model = load(folder, "va", normalize=False)
    model.append(Dense(16, 5))
    assert model.encode(["a", "b"]).shape == (2, 5)
    assert model.encode([]).shape == (0, 5)
    assert load(folder, "va").encode(["a"], truncate_dim=9999).shape == (1, 16)


def test_under_autocast_sums_and_vectors_stay_float32(folder: Path) -> None:
    model = load(folder, "va", normalize=False)
    plain = model.encode(["a cat", "rain fell"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = model.encode(["a cat", "rain fell"], convert_to_tensor=True)
        assert model(model.preprocess(["a cat"]))["sentence_embedding"].dtype == torch.float32
    assert vectors.dtype == torch.float32
    assert cosine(vectors.numpy(), plain).min() > 0.999


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
    # The same tokens in two rows of one step.
    assert np.allclose(vectors[0], vectors[2], atol=1e-6)
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
        (["a", None], r"1 of 2 texts .* row 1 is missing \(None\); leave missing texts out"),
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
    start, end = features["text_span"][0, 0].tolist()
    assert model.tokenizer.decode(features["input_ids"][0][start:end]).strip() == "x y z"


def test_every_step_is_told_to_whoever_watches():
    model = load("bundled")
    model.reader.executor.tokens_per_step = 64
    told = []
    with watching_steps(told.append):
        model.encode(["a text"] * 20)
    assert sum(told) == 20
    assert len(told) > 1
