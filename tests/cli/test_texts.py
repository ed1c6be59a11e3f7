"""Texts on the command line and on stdin: their vectors as lines, and what is no text but a name that is misspelt."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from running import fails, run, succeeds

from valuembed.cli import embed as cli_embed, main as cli, search as cli_search

pytestmark = pytest.mark.slow


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Commands get a fake model, whose calls are noted, and an empty working folder."""
    monkeypatch.chdir(tmp_path)
    model = FakeEncoder()
    for module in (cli, cli_embed, cli_search):
        monkeypatch.setattr(module, "load_encoder", lambda options: model)
    return model


def numbers(line):
    return np.array([float(number) for number in line.split(" ")], np.float32)


def test_a_text_gives_one_line_of_numbers(loaded):
    lines = succeeds("embed", "A cat sleeps.").splitlines()
    np.testing.assert_array_equal(numbers(lines[0]), FakeEncoder().encode_document(["A cat sleeps."])[0])
    assert (len(lines), loaded.calls[-1]) == (1, ("document", ["A cat sleeps."]))


def test_numbers_give_the_same_vector_again(loaded, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    monkeypatch.setattr(loaded, "encode_document", lambda texts, **options: vectors)
    lines = succeeds("embed", "one", "two").splitlines()
    np.testing.assert_array_equal([numbers(line) for line in lines], vectors)
    records = [json.loads(line) for line in succeeds("embed", "one", 'tw"o', "--json").splitlines()]
    assert [record["text"] for record in records] == ["one", 'tw"o']
    np.testing.assert_array_equal(np.array([record["embedding"] for record in records], np.float32), vectors)
    shortened = succeeds("embed", "one", "two", "--dim", 4, "--precision", "int8").splitlines()
    assert [len(line.split()) for line in shortened] == [4, 4]
    assert max(abs(int(number)) for number in shortened[0].split()) == 127
    message = "error: dim=17: the vectors of this model are 16 wide; legal: 1 to 16"
    assert fails("embed", "one", "--dim", 17) == message


def test_texts_as_queries(loaded):
    succeeds("embed", "Where?", "--query")
    assert loaded.calls[-1][0] == "query"


def test_lines_of_stdin(loaded):
    content = "\ufeffone\r\ntwo \u2028 still\rthree".encode()
    assert len(succeeds("embed", "-", stdin=content).splitlines()) == 3
    assert loaded.calls[-1][1] == ["one", "two \u2028 still", "three"]
    succeeds("embed", "first", "-", stdin=b"one\n")
    assert loaded.calls[-1][1] == ["first", "one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "error: stdin holds no text"),
        (
            b"one\n\ntwo\n",
            "error: stdin, line 2, is blank; a file sets such lines aside: valuembed embed - -o OUT",
        ),
        (b"one\n\xff\n", "error: stdin, line 2: not valid UTF-8: byte 0xff at byte 0; convert it first"),
        (b"a\0b\n", "error: stdin, line 1, is not text: NUL character at character 1; a file sets such lines aside"),
    ],
)
def test_lines_that_cannot_be_used(loaded, content, message):
    assert fails("embed", "-", stdin=content).startswith(message)
    assert loaded.calls == []


def test_stdin_into_a_file(loaded):
    shown = succeeds("embed", "-", "-o", "out.parquet", stdin=b"one\n\nthree\n")
    assert "2 of 3 rows embedded" in shown
    assert "out.parquet.rejected.jsonl: 1 row was set aside, each with its reason; the first, row 2: blank\n" in shown
    table = pq.read_table("out.parquet")
    assert (table["id"].to_pylist(), table["text"].to_pylist()) == ([0, 2], ["one", "three"])
    assert "- needs a .parquet file as OUTPUT, or none" in fails("embed", "-", "-o", "folder", code=2, stdin=b"x")


@pytest.mark.parametrize("name", ["notes.txt", "my notes.JSONL", "data/notes", "a.csv.gz", "x.json", r"C:\data\notes"])
def test_a_misspelt_name_is_no_text(loaded, name):
    message = fails("embed", name)
    assert message.startswith(f"error: there is no file {name}; if it is a text to be embedded, give it through a pipe")
    assert loaded.calls == []


@pytest.mark.parametrize("text", ["It costs 3/4 of that.", "notes", "See you at 5.30", "end.", "what? *"])
def test_a_text_is_a_text(loaded, text):
    succeeds("embed", text)
    assert loaded.calls[-1][1] == [text]


def test_a_file_needs_an_output(loaded):
    Path("notes").mkdir()
    Path("a.txt").write_text("one\n")
    for name in ("notes", "a.txt"):
        message = f"error: {name} is a file or a folder; name where its embeddings go: -o OUT.parquet, or -o FOLDER"
        assert fails("embed", name) == message
    assert fails("embed", " ") == "error: the text ' ' is blank"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "label"], "for --keep: is for files; name where their embeddings go with --output"),
        (["--text-column", "body"], "for --text-column: is for files"),
        (["--chunk", "9"], "for --chunk: is for files"),
        (["--overwrite"], "for --overwrite: is for files"),
        (["--engine", "ray"], "for --engine: ray is for a folder as OUTPUT"),
        (["--query", "-o", "out.parquet"], "for --query: is for texts without OUTPUT; files hold documents"),
    ],
)
def test_options_that_do_not_fit_texts(loaded, options, message):
    assert message in fails("embed", "a text", *options, code=2)


def test_columns_are_kept_as_asked(loaded):
    Path("a.jsonl").write_text('{"text": "a", "label": "x", "n": 1}\n')

    def names(*options):
        succeeds("embed", "a.jsonl", "-o", "out.parquet", "--overwrite", *options)
        return pq.read_schema("out.parquet").names[2:-1]

    assert names() == names("--keep", "all") == names("--keep", "label", "n") == ["label", "n"]
    assert names("--keep", "n") == ["n"]
    assert names("--keep", "none") == []
    message = fails("embed", "a.jsonl", "-o", "new.parquet", "--keep", "labels")
    assert message.endswith(
        "no column 'labels'; its columns are 'text', 'label', 'n'; give the name as it stands there: 'label'"
    )
    succeeds("embed", "a.jsonl", "-o", "folder", "--keep", "n")
    assert pq.read_schema(next(Path("folder").glob("*.parquet"))).names == [
        "id",
        "file",
        "row",
        "text",
        "n",
        "embedding",
    ]


def test_files_that_yield_nothing_end_with_an_error(loaded):
    Path("a.jsonl").write_text('[{"text": "a"}]')
    for output in ("out.parquet", "out"):
        message = fails("embed", "a.jsonl", "-o", output)
        assert (
            "its one row cannot be used; the first, in line 1: a JSON list, not an object with keys; it is one"
            in message
        )
        assert not Path(output).exists()
    Path("e.txt").touch()
    assert fails("embed", "e.txt", "-o", "out") == "error: input e.txt holds no rows: there is nothing in it"
    Path("b.txt").write_text("\n")
    message = "error: none of the 2 inputs holds a text; the first: input e.txt holds no rows: there is nothing in it"
    assert fails("embed", "e.txt", "b.txt", "-o", "out") == message
    # Among others, an empty one is fine; one that holds something else is not.
    Path("c.txt").write_text("one\n")
    assert "1 of 2 rows of 3 inputs embedded" in succeeds("embed", "e.txt", "b.txt", "c.txt", "-o", "out")
    assert "input a.jsonl: its one row cannot be used" in fails("embed", "a.jsonl", "c.txt", "-o", "out2")
    # The job has other inputs, of an earlier run.
    Path("d.txt").touch()
    assert "1 of 2 rows of 4 inputs embedded" in succeeds("embed", "d.txt", "-o", "out")


@pytest.mark.filterwarnings("default::UserWarning")
def test_an_input_without_use_that_is_long_is_warned_of(loaded):
    Path("a.txt").write_bytes(b"\xff\n" * 1001)
    Path("b.txt").write_text("one\n")
    result = run("embed", "a.txt", "b.txt", "-o", "out")
    assert result.exit_code == 0
    assert "warning: none of the rows of 1 input could be embedded: a.txt" in result.stderr
    assert "1,001 rows were set aside, each with its reason; the first, a.txt, row 1: not valid UTF-8" in result.stdout
    message = fails("embed", "a.txt", "-o", "alone")
    assert "none of 1,001 rows of 1 input could be embedded; the first, a.txt, row 1: not valid UTF-8" in message


def test_search_and_similarity_read_stdin(loaded):
    Path("a.txt").write_text("one\ntwo\n")
    succeeds("embed", "a.txt", "-o", "out.parquet")
    hits = json.loads(succeeds("search", "-", "--in", "out.parquet", "--json", stdin=b"one\n"))
    assert hits[0]["text"] == "one"
    assert loaded.calls[-1] == ("query", ["one"])
    assert fails("search", "-", "--in", "out.parquet", stdin=b" \n") == "error: stdin holds no text"
    assert json.loads(succeeds("similarity", "-", "--json", stdin=b"one\ntwo\n"))["texts"] == ["one", "two"]
