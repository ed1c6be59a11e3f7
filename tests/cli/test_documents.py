"""Documents on the command line: which way is taken, what is said, and what is refused."""

import json

import pytest
from fakes import FakeEncoder
from passages import held, words, write_document, write_documents
from running import fails, run, succeeds

from valuembed.cli import documents as cli_documents, embed as cli_embed, main as cli, search as cli_search  # noqa: F401
from valuembed.corpus.documents import update as update_module

pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
pytest.importorskip("semantic_text_splitter", reason="the extra 'documents' is not installed")


@pytest.fixture(autouse=True)
def loaded(monkeypatch, tmp_path):
    """Options that models were loaded with; the working folder is empty but for a folder of documents."""
    asked = []

    def load(options):
        asked.append(options)
        return FakeEncoder(name=options["model"])

    for module in (cli_documents, cli_embed, cli_search):
        monkeypatch.setattr(module, "load_encoder", load)
    monkeypatch.setattr(update_module, "token_counter", words)
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path / "kept"))
    for variable in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(variable, raising=False)
    write_documents(tmp_path / "notes")
    monkeypatch.chdir(tmp_path)
    return asked


class TestEmbed:
    def test_a_folder_of_documents(self, tmp_path, loaded):
        (tmp_path / "notes" / "film.mp4").write_bytes(b"x")
        result = run("embed", "notes", "-o", "out", "--chunk", 12)
        assert result.exit_code == 0, result.output
        first, second, third = result.stdout.splitlines()
        assert first == "out: 6 documents as 18 passages, 16 wide"
        assert second.startswith("this run: 6 new; 18 passages in ")
        assert third == (
            "1 file was set aside, listed in out/rejected.jsonl; the first: film.mp4: of a kind that nothing reads: "
            ".mp4"
        )
        said = result.stderr.splitlines()
        assert said[0] == "embedding --for search, as documents are; --method or another --for chooses otherwise"
        assert said[1] == (
            "notes: 6 documents, in passages of at most 12 tokens; --lines takes each line of .txt files as a text"
        )
        assert loaded[0] == {"model": "bundled", "method": "search", "compile": False, "trust_remote_code": False}
        assert len(held(tmp_path / "out")) == 6
        assert succeeds("search", "doc22", "--in", "out", "-k", 1).startswith(" 1  ")
        # What it was begun with need not be said again, and nothing is left to do.
        assert (
            succeeds("embed", "notes", "-o", "out").splitlines()[1].startswith("this run: nothing was left to do, in ")
        )
        assert loaded[-1]["method"].method == "aligned_wva"

    def test_one_document_and_what_is_no_document(self, tmp_path):
        assert "1 document as 3 passages" in succeeds("embed", "notes/a/0.md", "-o", "one", "--chunk", 12)
        (tmp_path / "plain.txt").write_text("one\ntwo\n")
        assert "2 of 2 rows of 1 input embedded" in succeeds("embed", "plain.txt", "-o", "lines")
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "a.jsonl").write_text('{"text": "one"}\n')
        assert "1 of 1 row of 1 input embedded" in succeeds("embed", "rows", "-o", "of-rows")
        (tmp_path / "rows" / "b.txt").write_text("two\nthree\n")
        # As it was begun.
        assert "3 of 3 rows of 2 inputs embedded" in succeeds("embed", "rows", "-o", "of-rows")
        assert "3 of 3 rows of 2 inputs embedded" in succeeds("embed", "rows", "-o", "more", "--lines")
        assert "2 documents as 2 passages" in succeeds("embed", "rows", "-o", "as-documents", "--chunk", 12)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--late"], "--late: is for rows of files, and INPUT holds documents; --lines takes"),
            (["--overlap", 3], "--overlap: is for rows of files"),
            (["--rows-per-shard", 3], "--rows-per-shard: is for rows of files"),
            (["--text-column", "a"], "--text-column: is for rows of files"),
            (["--keep", "a"], "--keep: is for rows of files"),
            (["--engine", "ray"], "--engine: is for rows of files"),
            (["--overwrite"], "--overwrite: a folder is gone on with, not replaced"),
        ],
    )
    def test_options_of_rows_are_refused(self, loaded, options, message):
        assert message in fails("embed", "notes", "-o", "out", *options, code=2)
        assert loaded == []

    def test_ways_do_not_mix(self, tmp_path, loaded):
        succeeds("embed", "notes", "-o", "out", "--chunk", 12)
        assert "--lines: is for rows, and out was begun with documents" in fails(
            "embed", "notes", "-o", "out", "--lines", code=2
        )
        message = "INPUT: documents are embedded from one folder, or one file, at a time; --lines takes"
        assert message in fails("embed", "notes", "notes/a", "-o", "other", code=2)
        assert "notes is read as documents, which need a folder" in fails("embed", "notes", "-o", "a.parquet", code=2)
        assert fails("embed", "nowhere", "-o", "out").startswith("error: nowhere does not exist; give a folder")
        other = write_documents(tmp_path / "other", 1)
        assert "output out holds the documents of " in fails("embed", other, "-o", "out")
        assert len(loaded) == 1

    def test_a_recipe_of_ones_own(self, loaded):
        succeeds("embed", "notes", "-o", "out", "--chunk", 12, "--method", "va")
        assert loaded[0]["method"] == "va"
        succeeds("embed", "notes", "-o", "more", "--chunk", 12, "--layers", "all")
        assert "method" not in loaded[1]


class TestIndex:
    def test_two_commands_from_notes_to_an_answer(self, tmp_path, monkeypatch):
        first = succeeds("index", "notes", "--chunk", 12).splitlines()[0]
        assert first == "notes/.valuembed/index: 6 documents as 18 passages, 16 wide"
        monkeypatch.chdir(tmp_path / "notes")
        found = run("search", "doc22", "-k", 1)
        assert found.stdout.splitlines()[0].endswith("  a/2.md, line 9 · Part 2 of doc2")
        assert found.stderr == ""
        monkeypatch.chdir(tmp_path / "notes" / "a")
        assert run("search", "doc22").stderr == f"searching in {tmp_path}/notes/.valuembed/index\n"
        # From elsewhere it is the one that was made last.
        monkeypatch.chdir(tmp_path)
        assert run("search", "doc22").stderr == f"searching in {tmp_path}/notes/.valuembed/index\n"
        succeeds("index", "notes/b", "--chunk", 12, "-o", "b.index")
        assert run("search", "doc22").stderr == f"searching in {tmp_path}/b.index\n"

    def test_it_is_brought_up_to_date(self, tmp_path):
        succeeds("index", "notes", "--chunk", 12)
        write_document(tmp_path / "notes" / "a" / "0.md", "other")
        (tmp_path / "notes" / "b" / "1.md").unlink()
        done = json.loads(succeeds("index", "notes", "--json"))
        assert (done["added"], done["changed"], done["removed"], done["unchanged"]) == (0, 1, 1, 4)
        said = succeeds("index", "notes").splitlines()
        assert said[1].startswith("this run: nothing was left to do")

    def test_hits_keep_everything_in_json(self):
        succeeds("index", "notes", "--chunk", 12)
        hit = json.loads(succeeds("search", "doc22", "-k", 1, "--json"))[0]
        assert hit["file"] == "a/2.md"
        assert hit["more"] == {"title": "Part 0 of doc2", "headings": "Part 2 of doc2", "page": None, "line": 9}
        assert [hit["text"][start:end] for start, end in hit["words"]] == ["doc22"] * 7

    def test_without_an_index(self, monkeypatch):
        message = (
            "error: there is no index in this folder or around it; make one with 'valuembed index FOLDER', or name"
        )
        assert fails("search", "a").startswith(message)
        monkeypatch.setenv("VALUEMBED_CACHE", "")
        assert fails("search", "a").startswith(message)
        assert "cannot have its index in itself; name one with --output" in fails("index", "notes/a/0.md")

    def test_a_document_by_itself_has_its_index_elsewhere(self, tmp_path):
        first = succeeds("index", "notes/a/0.md", "--chunk", 12).splitlines()[0]
        assert first.startswith(f"{tmp_path}/kept/indexes/0.md-")
        assert "0.md, line 9" in succeeds("search", "doc02", "-k", 1)

    def test_two_folders_in_one_index_are_told_apart(self, tmp_path):
        write_documents(tmp_path / "mail", 2)
        succeeds("index", "notes", "-o", "both", "--chunk", 12)
        succeeds("index", "mail", "-o", "both")
        shown = succeeds("search", "doc12", "--in", "both", "-k", 24).splitlines()
        names = {line.split("  ")[2].split(",")[0] for line in shown if ", line " in line}
        assert {"mail: b/1.md", "notes: b/1.md", "notes: a/4.md"} <= names
        assert len(names) == 8
        write_documents(tmp_path / "more" / "mail", 1)
        message = f"both has a source named 'mail' from {tmp_path}/mail, and this one is {tmp_path}/more/mail"
        assert message in fails("index", "more/mail", "-o", "both")

    def test_an_index_of_another_model(self, monkeypatch):
        succeeds("index", "notes", "--chunk", 12)
        monkeypatch.setattr(cli_documents, "load_encoder", lambda options: FakeEncoder("two", layers=(1,)))
        message = "index notes/.valuembed/index holds vectors made by model 'bundled'"
        assert message in fails_after_telling("index", "notes")

    def test_an_interrupt_says_what_is_kept(self, monkeypatch):
        class Interrupted(FakeEncoder):
            def encode_document(self, inputs, **options):
                if self.calls:
                    raise KeyboardInterrupt
                return super().encode_document(inputs, **options)

        monkeypatch.setattr(cli_documents, "load_encoder", lambda options: Interrupted())
        result = run("index", "notes", "--chunk", 12)
        assert result.exit_code == 130
        assert result.stderr.endswith(
            "interrupted; documents that are finished are kept, the same command goes on from there\n"
        )


def fails_after_telling(*arguments):
    """A command's last line on stderr; it has to end with an error."""
    result = run(*arguments)
    assert result.exit_code == 1
    return result.stderr.splitlines()[-1]


class TestOpen:
    @pytest.mark.parametrize("source", ["index", "embed"])
    def test_an_editor_goes_to_the_line(self, tmp_path, monkeypatch, source):
        started = []
        monkeypatch.setattr("subprocess.run", lambda command, check: started.append(command) or Done())
        monkeypatch.setenv("EDITOR", "nano -w")
        succeeds(source, "notes", "-o", "out", "--chunk", 12)
        result = run("search", "doc22", "--in", "out", "--open", 1)
        assert result.stdout == ""
        assert started == [["nano", "-w", "+9", f"{tmp_path}/notes/a/2.md"]]
        assert result.stderr.splitlines()[-1] == f"opening {tmp_path}/notes/a/2.md, line 9"
        (tmp_path / "notes" / "a" / "2.md").unlink()
        message = f"hit 1 comes from a/2.md, and there is no file {tmp_path}/notes/a/2.md; was it moved?"
        assert message in fails("search", "doc22", "--in", "out", "--open", 1)
        assert "there is no hit 40; 18 hits were found" in fails("search", "doc22", "--in", "out", "--open", 40)


class Done:
    """How a program ended that was not started."""

    returncode = 0
