"""Documents cut into chunks that fit into a model, and on their way through a job."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from some_texts import some_texts

import valuembed
from valuembed.corpus.chunking import cutter_for
from valuembed.errors import InputError, OutputError, RecipeError
from valuembed.tokenization import Chunk, Cutter
from valuembed.vectors import recorded_choices

pytestmark = pytest.mark.slow


class TestOfAModel:
    def test_a_chunk_has_to_fit_beside_the_template(self, folder):
        model = valuembed.load(folder, template="so: {text} end", max_tokens=40, prompts={"document": "read: "})
        row = model.reader.texts.rows(["a"], "so: {text} end", "read: ", max_tokens=None)[0]
        room = 40 - len(row.ids) + 1
        assert 20 < room < 40
        assert cutter_for(model, room).tokens == room
        message = (
            rf"^chunk={room + 1}: beside the template, {room} tokens of a text fit into max_tokens=40; ask for smaller"
        )
        with pytest.raises(InputError, match=message):
            cutter_for(model, room + 1)
        # Both copies of a text have to fit.
        echo = valuembed.load(folder, template="echo", max_tokens=40)
        with pytest.raises(InputError, match=r"beside the template, \d tokens of a text fit|, 1\d tokens"):
            cutter_for(echo, room)

    @pytest.mark.slow
    def test_documents_through_a_job(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = valuembed.load(folder, "va", template="none")
        documents = [" ".join(some_texts(12)), "short", " ".join(some_texts(5))]
        (tmp_path / "a.txt").write_text("\n".join([*documents[:2], "", documents[2]]))
        done = valuembed.embed_corpus(model, "a.txt", "out", chunk=40, overlap=10, progress=False)
        assert (done.rows, done.embedded, done.rejected) == (4, 3, 1)
        (path,) = (tmp_path / "out").glob("*.parquet")
        table = pq.read_table(path)
        assert table.schema.names == ["id", "file", "row", "chunk", "start", "end", "text", "embedding"]
        assert done.vectors == table.num_rows > 10
        for row, document in zip((0, 1, 3), documents, strict=True):
            of_row = [entry for entry in table.to_pylist() if entry["row"] == row]
            assert [entry["chunk"] for entry in of_row] == list(range(len(of_row)))
            expected = Cutter(model.reader.texts.tokenizer, 40, 10).cut(document)
            assert [Chunk(entry["text"], entry["start"], entry["end"]) for entry in of_row] == expected
        vectors = model.encode_document(table["text"].to_pylist())
        np.testing.assert_allclose(np.array(table["embedding"].to_pylist(), np.float32), vectors, atol=1e-6)
        # A document may be longer than a text may be.
        (tmp_path / "b.txt").write_text("word " * 20_000 + " " * 900_000 + "end")
        done = valuembed.embed_corpus(model, "b.txt", "long", chunk=250, progress=False)
        assert (done.embedded, done.truncated) == (1, 0)


class TestLate:
    DOCUMENTS = (" ".join(some_texts(12)), "short", " ".join(some_texts(5)))

    @pytest.fixture
    def corpus(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("\n".join([*self.DOCUMENTS[:2], "", self.DOCUMENTS[2]]))
        return tmp_path

    @pytest.mark.parametrize("max_tokens", [None, 90])
    def test_chunks_are_parts_of_one_pass(self, folder, corpus, max_tokens):
        model = valuembed.load(folder, "va", template="none", max_tokens=max_tokens)
        valuembed.embed_corpus(model, "a.txt", "plain", chunk=40, overlap=10, progress=False)
        done = valuembed.embed_corpus(model, "a.txt", "late", chunk=40, overlap=10, late=True, progress=False)
        assert (done.rows, done.embedded, done.rejected, done.truncated) == (4, 3, 1, 0)
        one, other = (pq.read_table(next((corpus / name).glob("*.parquet"))) for name in ("plain", "late"))
        # The same chunks, and other vectors of all that have something in front of them.
        assert one.drop_columns(["embedding"]).equals(other.drop_columns(["embedding"]))
        vectors = np.array(other["embedding"].to_pylist(), np.float32)
        apart = abs(vectors - np.array(one["embedding"].to_pylist(), np.float32)).max(axis=1) > 1e-3
        assert (apart == (np.array(other["chunk"]) > 0)).all()
        parts = model.encode_parts(list(self.DOCUMENTS), chunk_tokens=40, overlap=10, task="document")
        np.testing.assert_allclose(vectors, np.concatenate([of_text.vectors for of_text in parts]), atol=1e-6)

    def test_a_folder_is_gone_on_with_as_it_was_begun(self, folder, corpus):
        model = valuembed.load(folder, "va")
        valuembed.embed_corpus(model, "a.txt", "out", chunk=40, late=True, progress=False)
        with pytest.raises(OutputError, match=r"settings \(there against here\): late True against False"):
            valuembed.embed_corpus(model, "a.txt", "out", chunk=40, progress=False)
        # One that was begun before there was a choice.
        valuembed.embed_corpus(model, "a.txt", "early", chunk=40, progress=False)
        manifest = corpus / "early" / "manifest.json"
        record = json.loads(manifest.read_text())
        del record["settings"]["late"]
        manifest.write_text(json.dumps(record))
        assert recorded_choices(record, {"late": None, "chunk": None}) == {"late": False, "chunk": 40}
        assert valuembed.embed_corpus(model, "a.txt", "early", chunk=40, progress=False).embedded == 3
        with pytest.raises(OutputError, match="late False against True"):
            valuembed.embed_corpus(model, "a.txt", "early", chunk=40, late=True, progress=False)

    def test_refused(self, folder, corpus):
        with pytest.raises(InputError, match=r"^late=True reads the chunks of a text from one pass"):
            valuembed.embed_corpus(valuembed.load(folder, "va"), "a.txt", "out", late=True)
        with pytest.raises(RecipeError, match=r"^late chunking: method 'wva' reads a text at its last token"):
            valuembed.embed_corpus(valuembed.load(folder, "wva"), "a.txt", "out", chunk=40, late=True)
        assert not (corpus / "out").exists()

    def test_a_document_that_cannot_be_read_costs_no_other(self, folder, corpus, monkeypatch):
        model = valuembed.load(folder, "va")
        read = type(model).encode_parts

        def failing(self, texts, spans, **options):
            if TestLate.DOCUMENTS[0] in texts:
                raise InputError(f"text {texts.index(TestLate.DOCUMENTS[0])}, part 1: it has 50 tokens")
            return read(self, texts, spans, **options)

        monkeypatch.setattr(type(model), "encode_parts", failing)
        done = valuembed.embed_corpus(model, "a.txt", "out", chunk=40, late=True, progress=False)
        assert (done.embedded, done.rejected) == (2, 2)
        reasons = [json.loads(line)["reason"] for line in (corpus / "out" / "rejected.jsonl").read_text().splitlines()]
        assert "cannot be read in one pass: part 1: it has 50 tokens" in reasons[0]
