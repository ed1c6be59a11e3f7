"""Tokens for which a model has no embedding: told at load, refused by row, set aside by jobs, a 400 of the server."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from running import fails, run, succeeds
from serving import running
from transformers import AutoTokenizer

import valuembed
from valuembed.cli import main as cli
from valuembed.errors import InputError, TemplateError, UnknownTokenError, VocabularyWarning
from valuembed.models.explanation import explain
from valuembed.models.multi_readout import MultiReadout
from valuembed.serving.engine import EncoderEngine
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

ROWS = 512
TEXTS = ["a cat", "a <new> cat", "two", "<new>", "<newer> and <new>"]


def checkpoint(folder, *added, rows=ROWS, **options):
    """A tiny checkpoint whose tokenizer knows tokens, from id 512 on, for which there is no embedding."""
    tiny_checkpoint(folder, "qwen3", vocab_size=rows, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<fill {number}>" for number in range(ROWS - len(tokenizer))])
    for token in added:
        special = token.startswith("<|")
        tokenizer.add_tokens([token], special_tokens=special)
    assert len(tokenizer) == ROWS + len(added)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """A checkpoint with two texts' tokens and one special token too many."""
    return checkpoint(tmp_path_factory.mktemp("beyond") / "model", "<new>", "<newer>", "<|turn|>")


@pytest.fixture(scope="module")
def model(beyond):
    with pytest.warns(VocabularyWarning):
        return valuembed.load(beyond, "va", device="cpu")


TOLD = (
    "the tokenizer knows 3 ids beyond the 512 rows of the embedding matrix: '<new>' (id 512), '<newer>' (id 513), "
    "'<|turn|>' (id 514); a text that holds such a token cannot be embedded and is refused"
)


class TestLoading:
    def test_is_told_once(self, beyond):
        with pytest.warns(VocabularyWarning) as told:
            valuembed.load(beyond, "va", device="cpu")
        assert [str(warning.message) for warning in told] == [f"model {str(beyond)!r}: {TOLD}"]

    def test_special_tokens_are_in_no_text(self, tmp_path):
        folder = checkpoint(tmp_path, "<|pad|>")
        with pytest.warns(
            VocabularyWarning, match=r"knows 1 id beyond .*'<\|pad\|>' \(id 512\); these are special tok"
        ):
            model = valuembed.load(folder, "va", device="cpu")
        assert np.isfinite(model.encode("a <|pad|> cat")).all()

    def test_many_are_counted(self, tmp_path):
        folder = checkpoint(tmp_path, *(f"<t{number}>" for number in range(9)))
        with pytest.warns(VocabularyWarning, match=r"knows 9 ids beyond .*'<t2>' \(id 514\) and 6 more; a text that"):
            valuembed.load(folder, "va", device="cpu")

    def test_a_matrix_with_spare_rows_is_nothing_to_tell(self, folder):
        assert valuembed.info(folder).tokens_without_embedding is None
        valuembed.load(folder, "va", device="cpu")

    @pytest.mark.parametrize("template", ["<|turn|>{text}", "{text} <new>", ["none", "<|turn|>{text}"]])
    def test_a_template_of_such_tokens_is_an_error(self, beyond, template):
        message = r"puts the token '<.*>' \(id 51\d\) around every text, and the model has no embedding for it: its mat"
        with pytest.raises(TemplateError, match=message):
            valuembed.load(beyond, "va", template=template)
        with pytest.raises(TemplateError, match=message):
            valuembed.load(beyond, "va", template={"query": template, "default": "none"})

    def test_so_is_a_bos(self, tmp_path):
        # The tokenizer's own BOS is among the ids that have no row.
        folder = tiny_checkpoint(tmp_path, "qwen3", tokenizer="byte_level_bos")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        bos = tokenizer.bos_token_id
        tiny_checkpoint(tmp_path, "qwen3", tokenizer="byte_level_bos", vocab_size=bos, bos_token_id=0, pad_token_id=0)
        with pytest.raises(TemplateError, match=rf"template '{{text}}' puts the token '<s>' \(id {bos}\) around every"):
            valuembed.load(folder, "va", template="none")

    def test_panels_check_every_template(self, beyond):
        recipes = {"plain": "va", "turns": valuembed.Recipe(signal="value", weights="mean", template="<|turn|>{text}")}
        with pytest.warns(VocabularyWarning), pytest.raises(TemplateError, match=r"puts the token '<\|turn\|>'"):
            MultiReadout.load(beyond, recipes)


class TestEncoding:
    def test_rows_and_tokens_are_named(self, model):
        with pytest.raises(UnknownTokenError) as raised:
            model.encode(TEXTS)
        assert str(raised.value) == (
            "3 of 5 texts cannot be embedded: row 1 holds the token '<new>' (id 512), for which the model has no "
            "embedding; row 3 holds the token '<new>' (id 512), for which the model has no embedding; row 4 holds the "
            "token '<newer>' (id 513), for which the model has no embedding"
        )
        assert isinstance(raised.value, InputError)

    def test_rows_are_those_of_the_call(self, model, monkeypatch):
        monkeypatch.setattr("valuembed.execution.stream.TEXTS_PER_WINDOW", 2)
        with pytest.raises(
            UnknownTokenError, match=r"^1 of 70 texts cannot be embedded: row 67 holds the token '<new>'"
        ):
            model.encode([*["a"] * 67, "<new>", "a", "a"])

    def test_other_texts_are_as_ever(self, model):
        assert np.isfinite(model.encode(["a cat", "two"])).all()

    def test_what_is_cut_away_does_not_count(self, beyond):
        with pytest.warns(VocabularyWarning):
            short = valuembed.load(beyond, "va", template="none", max_tokens=3, device="cpu")
        with pytest.warns(valuembed.TruncationWarning):
            short.encode("one two three <new>")

    def test_an_instruction(self, model):
        with pytest.raises(InputError, match=r"and its instruction hold the token '<new>' \(id 512\), for which the m"):
            model.encode(["a", "b"], prompt="<new>: ")

    def test_panels_and_explanations(self, model):
        with pytest.raises(
            UnknownTokenError, match=r"^1 of 2 texts cannot be embedded: row 1 holds the token '<newer>'"
        ):
            MultiReadout(model.reader, {"va": model.reader.plan}).encode(["a", "<newer>"])
        with pytest.raises(UnknownTokenError, match="row 0 holds the token '<new>'"):
            explain(model, "a <new>", plan=MultiReadout(model.reader, {"w": _weighing(model)}).plans["w"])

    def test_a_matrix_that_was_resized_meanwhile_is_asked_anew(self, beyond):
        with pytest.warns(VocabularyWarning):
            resized = valuembed.load(beyond, "va", device="cpu")
        resized.reader.model.resize_token_embeddings(ROWS + 3)
        assert np.isfinite(resized.encode(TEXTS)).all()

    def test_tokens_that_are_added_after_loading_are_found_too(self, folder):
        grown = valuembed.load(folder, "va", device="cpu")
        spare = ROWS - len(grown.tokenizer)
        grown.tokenizer.add_tokens([f"<t{number}>" for number in range(spare + 1)])
        assert np.isfinite(grown.encode("<t0>")).all()
        with pytest.raises(UnknownTokenError, match=rf"row 0 holds the token '<t{spare}>' \(id 512\)"):
            grown.encode(f"<t{spare}>")


def _weighing(model):
    from dataclasses import replace

    return replace(model.reader.plan, recipe=replace(model.recipe, weights="last"))


class TestJobs:
    def test_a_file(self, model, tmp_path):
        texts = tmp_path / "in.txt"
        texts.write_text("\n".join([*TEXTS, "", "three"]))
        done = valuembed.embed_file(model, texts, tmp_path / "out.parquet", rows_per_chunk=3)
        assert (done.rows, done.embedded, done.rejected) == (7, 3, 4)
        table = pq.read_table(tmp_path / "out.parquet")
        assert table["text"].to_pylist() == ["a cat", "two", "three"]
        expected = model.encode(["a cat", "two", "three"])
        np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)
        aside = [json.loads(line) for line in (tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()]
        assert [row["row"] for row in aside] == [2, 4, 5, 6]
        assert aside[0]["reason"] == "holds the token '<new>' (id 512), for which the model has no embedding"

    def test_a_file_of_nothing_else(self, model, tmp_path):
        texts = tmp_path / "in.txt"
        texts.write_text("<new>\n<newer>\n")
        with pytest.raises(InputError, match=r"none of its 2 rows can be used; the first, in line 1: holds the token"):
            valuembed.embed_file(model, texts, tmp_path / "out.parquet")
        assert list(tmp_path.iterdir()) == [texts]

    def test_a_corpus(self, model, tmp_path):
        texts = tmp_path / "in.txt"
        # More than the few texts without a finite vector that a call may hold.
        texts.write_text("\n".join([*TEXTS, *["<new>"] * 20]))
        summary = valuembed.embed_corpus(model, [texts], tmp_path / "out")
        assert (summary.embedded, summary.rejected) == (2, 23)
        listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
        assert "holds the token '<newer>' (id 513)" in listed[2]["reason"]

    @pytest.mark.filterwarnings("default")
    def test_the_command(self, beyond, tmp_path):
        texts = tmp_path / "in.txt"
        texts.write_text("\n".join(TEXTS))
        found = run("embed", texts, "-o", tmp_path / "out.parquet", "--model", beyond, "--method", "va")
        assert found.exit_code == 0, found.output
        assert TOLD in " ".join(found.stderr.split())
        assert "Traceback" not in found.output
        assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 2


@pytest.mark.filterwarnings("default")
class TestCommands:
    def test_info_says_it_beforehand(self, beyond):
        assert cli.app.registered_commands
        assert TOLD in " ".join(succeeds("info", beyond).split())
        assert json.loads(succeeds("info", beyond, "--json"))["tokens_without_embedding"] == TOLD

    def test_a_text_is_one_line(self, beyond):
        message = fails("similarity", "a", "a <new>", "--model", beyond)
        assert "error: 1 of 2 texts cannot be embedded: row 1 holds the token '<new>' (id 512)" in message

    def test_a_template_is_one_line(self, beyond):
        message = fails("similarity", "a", "b", "--model", beyond, "--template", "<|turn|>{text}")
        assert "error: template '<|turn|>{text}' puts the token '<|turn|>' (id 514) around every text" in message


@pytest.fixture(scope="module")
def url(model):
    with running(EncoderEngine(model), name="any") as (url, _):
        yield f"{url}/v1/embeddings"


class TestServing:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                "a <new>",
                "input: it cannot be embedded: it holds the token '<new>' (id 512), for which the model has no",
            ),
            (["a", "<newer>"], "input: item 1 cannot be embedded: it holds the token '<newer>' (id 513)"),
            (
                [512],
                "input: token 0 is 512, which is no token id of this model: its ids are whole numbers from 0 to 511",
            ),
            (
                [5, -1],
                "input: token 1 is -1, which is no token id of this model: its ids are whole numbers from 0 to 511",
            ),
            ([[5], [5, 10**20]], "input: item 1, token 1 is 100000000000000000000, which is no token id of this model"),
            ([5, 2.5], "input: token 1 is 2.5, which is no token id of this model: its ids are whole numbers from 0"),
            ([True], "input: token 0 is true, which is no token id of this model"),
        ],
    )
    def test_is_a_400(self, url, given, message):
        found = httpx.post(url, json={"input": given})
        error = found.json()["error"]
        assert (found.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "input")
        assert error["message"].startswith(message)

    def test_a_template(self, url):
        found = httpx.post(url, json={"input": "a", "template": "<|turn|>{text}"})
        assert (found.status_code, found.json()["error"]["param"]) == (400, "template")

    def test_others_go_on(self, url, model):
        found = httpx.post(url, json={"input": ["a cat", "two"]})
        assert found.status_code == 200
        vectors = torch.tensor([item["embedding"] for item in found.json()["data"]])
        np.testing.assert_allclose(vectors, model.encode(["a cat", "two"]), atol=1e-6)
