"""Documents cut into chunks that fit into a model, and on their way through a job."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from some_texts import some_texts

import valuembed
from valuembed.corpus.chunking import cutter_for
from valuembed.errors import InputError
from valuembed.tokenization import Chunk, Cutter

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
