"""The commands ``index`` and ``search``, as far as an index goes; ``cli/test_main.py`` searches files."""

import json

import pytest
from fakes import FakeEncoder
from running import fails, run, succeeds
from stored import some_words, write_embeddings

from valuembed.cli import (
    main as cli,  # noqa: F401
    search as cli_search,
)

pytest.importorskip("lancedb", reason="the extra 'store' is not installed")

WORDS = some_words(20)


@pytest.fixture
def loaded(monkeypatch):
    asked = []

    def load(options):
        asked.append(options)
        return FakeEncoder(name=options["model"])

    monkeypatch.setattr(cli_search, "load_encoder", load)
    return asked


@pytest.fixture
def source(tmp_path):
    for number in (0, 1):
        path = tmp_path / "out" / f"{number}.parquet"
        write_embeddings(path, WORDS[10 * number :][:10], file="in.txt", first_row=10 * number)
    return tmp_path / "out"


def test_index_tells_what_it_did(source, tmp_path):
    index = tmp_path / "index"
    first, second = succeeds("index", source, "-o", index).splitlines()
    assert first.startswith(f"{index}: 20 rows added, 0 replaced, 0 removed, in ")
    assert second == "20 rows are in it; too few for an approximate index, so each search is exact"
    (source / "0.parquet").unlink()
    first, _, third = succeeds("index", source, "--output", index).splitlines()
    assert first.endswith(" s (1 of 1 file unchanged)")
    assert third == f"10 rows named 'out' are not in {source} and were kept; --prune removes them"
    done = json.loads(succeeds("index", source, "-o", index, "--prune", "--language", "English", "--json"))
    assert (done["removed"], done["rows"], done["name"], done["approximate"]) == (10, 10, "out", False)
    done = json.loads(succeeds("index", source, "-o", index, "--name", "other", "--json"))
    assert (done["added"], done["rows"], done["name"]) == (10, 20, "other")


def test_an_index_of_embeddings_takes_no_option_of_a_model_or_of_documents(source, tmp_path):
    for option, value in (("--model", "bundled"), ("--method", "va"), ("--chunk", 9), ("--dim", 4)):
        message = f"Invalid value for {option}: is for documents; SOURCE holds embeddings"
        assert message in fails("index", source, "-o", tmp_path / "index", option, value, code=2)
    message = "Invalid value for --output: is needed where SOURCE holds embeddings"
    assert message in fails("index", source, code=2)


def test_errors_are_one_line(source, tmp_path, loaded):
    assert fails("index", tmp_path / "no", "-o", tmp_path / "index").startswith(
        f"error: {tmp_path}/no does not exist; "
    )
    succeeds("index", source, "-o", tmp_path / "index")
    message = fails("search", "abc", "--in", tmp_path / "index", "--where", "colour = 'red'")
    assert message.startswith(
        "error: the filter \"colour = 'red'\" cannot be applied: Schema error: No field named colo"
    )
    assert message.endswith("text (string)")
    message = fails("search", "abc", "--in", source, "--hybrid")
    assert message.endswith(f"so there is no hybrid; make one with: valuembed index {source} -o INDEX")
    assert loaded == [], "a model was loaded for nothing"
    assert "Invalid value for '--probes'" in fails("search", "abc", "--in", tmp_path / "index", "--probes", 0, code=2)


def test_search_in_an_index(source, tmp_path, loaded):
    succeeds("index", source, "-o", tmp_path / "index")
    shown = succeeds("search", WORDS[13], "--in", tmp_path / "index", "-k", 2).splitlines()
    assert [line.rstrip() for line in shown[:2]] == [" 1  1.000  in.txt, row 13", f"    {WORDS[13]}"]
    assert len(shown) == 4
    given = ["--where", "row < 10", "--probes", 3, "--refine", 2, "-k", 20, "--json"]
    hits = json.loads(succeeds("search", WORDS[13], "--in", tmp_path / "index", *given))
    assert sorted(hit["row"] for hit in hits) == list(range(10))
    assert {"rank", "score", "id", "text", "file", "row", "source", "words"} <= hits[0].keys()
    assert loaded[0]["model"] == "bundled"


def test_hybrid_search_shows_what_decided(source, tmp_path, loaded):
    succeeds("index", source, "-o", tmp_path / "index")
    shown = succeeds("search", WORDS[4], "--in", tmp_path / "index", "--hybrid", "-k", 1).splitlines()
    # First by meaning and by words: 2 / 61.
    assert [line.rstrip() for line in shown] == [" 1  1.000 (fused 0.0328)  in.txt, row 4", f"    {WORDS[4]}"]


def test_a_filter_by_file(source, tmp_path, loaded):
    write_embeddings(source / "2.parquet", ["ab"], file="it's_50%/a.txt")
    succeeds("index", source, "-o", tmp_path / "index")
    for pattern, count in (
        ("it's_50%/*", 1),
        ("?n.txt", 20),
        ("n.txt", 0),
        ("*", 21),
        ("it's?50%/a.txt", 1),
        ("_n*", 0),
    ):
        hits = json.loads(succeeds("search", "abc", "--in", tmp_path / "index", "--file", pattern, "-k", 30, "--json"))
        assert len(hits) == count, pattern
    given = ["--file", "*.txt", "--where", "row = 0 OR row = 1 -- x", "--json"]
    assert len(json.loads(succeeds("search", "abc", "--in", tmp_path / "index", *given))) == 3
    result = run("search", "abc", "--in", tmp_path / "index", "--file", "no")
    assert (result.stdout, result.stderr.splitlines()[-1]) == ("", "nothing was found: no row meets the condition")


def test_search_in_a_folder_of_files(source, loaded):
    shown = succeeds("search", WORDS[4], "--in", source, "-k", 1).splitlines()
    assert shown[0] == " 1  1.000  in.txt, row 4"


def test_an_index_of_another_model(source, tmp_path, monkeypatch):
    succeeds("index", source, "-o", tmp_path / "index")
    monkeypatch.setattr(cli_search, "load_encoder", lambda options: FakeEncoder("two", layers=(1,)))
    message = fails("search", "abc", "--in", tmp_path / "index")
    assert f"{tmp_path}/index was made by model 'fake', method 'aligned_wva'" in message
    assert message.endswith("layers [2, 3] against [1]")


@pytest.mark.filterwarnings("default::valuembed.search.index.RepeatedIdWarning")
def test_a_repeated_id_is_one_line(tmp_path):
    path = write_embeddings(tmp_path / "a.parquet", ["ab", "bc"], ids=["x", "x"])
    result = run("index", path, "-o", tmp_path / "index")
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: {path}: 1 row has an id that comes again further down; of each id the index holds the last row\n"
    )
