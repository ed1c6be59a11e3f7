"""Hits on a screen, and the commands that open them."""

from pathlib import Path

import pytest
from rich.console import Console

from valuembed.cli import hits as module
from valuembed.cli.hits import excerpt, file_of, open_hit, opening, show_hits
from valuembed.errors import InputError, OutputError
from valuembed.search import Hit

LONG = "One of many words. " * 30


def hit(text="A late goal.", rank=1, more=None, **fields):
    passage = {"title": "Notes", "headings": "Notes > Sport", "page": None, "line": 12}
    return Hit(rank, 0.5, "x", text, more=passage if more is None else more, **fields)


def lines(query, text, width=40):
    return excerpt(query, text, width, Console(width=width))


class TestExcerpt:
    def test_a_short_text_is_whole(self):
        (line,) = lines("goal", "A  late\ngoal.")
        assert line.plain == "A late goal."
        assert [(span.start, span.end, span.style) for span in line.spans] == [(7, 11, "bold")]

    def test_the_part_with_the_words_is_shown(self):
        shown = lines("late goal", f"{LONG}Then a late goal decided it. {LONG}")
        assert len(shown) == 2
        text = " ".join(line.plain for line in shown)
        assert text.startswith("… ")
        assert text.endswith(" …")
        assert "a late goal decided" in text
        marked = [line.plain[span.start : span.end] for line in shown for span in line.spans]
        assert marked == ["late", "goal"]

    def test_no_words_show_the_beginning(self):
        first, second = lines("nothing", LONG)
        assert first.plain.startswith("One of many words.")
        assert second.plain.endswith(" …")

    @pytest.mark.parametrize("text", [LONG, "東京都に住んでいます。" * 20, "x" * 500, "a\x1b[31mb " * 90])
    @pytest.mark.parametrize("width", [10, 36, 76])
    def test_no_line_is_wider_than_there_is_room(self, text, width):
        shown = lines("words 住んで b", text, width)
        assert 1 <= len(shown) <= 2
        assert all(line.cell_len <= width for line in shown)
        assert all("\x1b" not in line.plain for line in shown)


class TestShown:
    @pytest.fixture
    def printed(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")

        def show(*hits):
            show_hits("late goal", hits)
            return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

        return show

    def test_three_lines_of_80_columns(self, printed):
        several = [hit(LONG + "late goal " + LONG, n + 1, file=f"{'folder/' * 9}file{n}.md") for n in range(10)]
        shown = printed(*several)
        assert len(shown) == 30
        assert max(map(len, shown)) <= 80
        assert shown[27].startswith("10  0.500  …")
        assert shown[27].endswith("file9.md, line 12")

    @pytest.mark.parametrize(
        ("fields", "more", "expected"),
        [
            ({"file": "a.md"}, {"headings": "A > B", "line": 3, "page": None}, "a.md, line 3 · A > B"),
            ({"file": "a.pdf"}, {"title": "T", "headings": None, "line": None, "page": 4}, "a.pdf, page 4 · T"),
            ({"file": "a.docx", "chunk": 1}, {"headings": None, "line": None, "page": None}, "a.docx, passage 2"),
            ({"file": "a.txt", "row": 7}, {}, "a.txt, id x"),
            ({"file": "a.txt", "row": 7, "chunk": 2}, {}, "a.txt, id x, chunk 2"),
            ({}, {}, "id x"),
            ({"file": "a.md", "fused": 0.03}, {"line": 3}, "a.md, line 3"),
        ],
    )
    def test_the_place(self, printed, fields, more, expected):
        fused = " (fused 0.0300)" if "fused" in fields else ""
        assert printed(hit(more=more, **fields))[0] == f" 1  0.500{fused}  {expected}"

    def test_a_trail_keeps_its_last_headings(self, printed):
        trail = " > ".join(["A long heading of a book", "Another one of a chapter", "Last of all"])
        assert printed(hit(file="a.md", more={"headings": trail, "line": 1}))[0] == (
            " 1  0.500  a.md, line 1 · … > Another one of a chapter > Last of all"
        )
        assert printed(hit(file="a.md", more={"headings": "word " * 30, "line": 1}))[0].endswith(" word wor…")

    def test_nothing_odd_is_piped(self, printed):
        assert "\x1b" not in "".join(printed(hit(file="a.md")))


class TestOpening:
    def test_what_hits_come_from(self, tmp_path):
        (tmp_path / "a.md").write_text("a")
        one = hit(file="a.md", source="notes")
        assert file_of(one, {"notes": tmp_path}, None) == tmp_path / "a.md"
        assert file_of(one, {"notes": tmp_path / "a.md"}, None) == tmp_path / "a.md"
        assert file_of(hit(file="a.md"), {}, tmp_path) == tmp_path / "a.md"
        with pytest.raises(InputError, match="hit 1 comes from no file that is recorded"):
            file_of(hit(), {}, None)
        with pytest.raises(InputError, match=r"hit 1 comes from b\.md, and there is no file \S+b\.md; was it moved"):
            file_of(hit(file="b.md"), {}, tmp_path)

    @pytest.mark.parametrize(
        ("editor", "command"),
        [
            ("vim", ["vim", "+12", "a.md"]),
            ("/usr/bin/code -w", ["/usr/bin/code", "-w", "--goto", "a.md:12"]),
            ("subl", ["subl", "a.md:12"]),
        ],
    )
    def test_editors(self, monkeypatch, editor, command):
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", editor)
        assert opening(Path("a.md"), hit(file="a.md")) == command

    def test_what_is_no_text_is_opened_by_the_system(self, monkeypatch):
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setenv("VISUAL", "vim")
        here = {"xdg-open", "okular"}
        monkeypatch.setattr("shutil.which", lambda name: name if name in here else None)
        page = hit(file="a.pdf", more={"page": 3, "line": None})
        assert opening(Path("a.pdf"), page) == ["okular", "--page=3", "a.pdf"]
        here.remove("okular")
        assert opening(Path("a.pdf"), page) == ["xdg-open", "a.pdf"]
        assert opening(Path("a.docx"), hit(more={"page": None, "line": None})) == ["xdg-open", "a.docx"]
        here.clear()
        with pytest.raises(
            OutputError, match=r"nothing is here to open a\.pdf with; name an editor in the variable EDITOR"
        ):
            opening(Path("a.pdf"), page)

    def test_an_editor_that_fails(self, monkeypatch):
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", "no-such-editor-at-all")
        with pytest.raises(OutputError, match="cannot run no-such-editor-at-all: No such file or directory"):
            open_hit(Path("a.md"), hit())
        monkeypatch.setattr(module.subprocess, "run", lambda command, check: type("Done", (), {"returncode": 3}))
        with pytest.raises(OutputError, match=r"no-such-editor-at-all ended with 3 when it was to open a\.md"):
            open_hit(Path("a.md"), hit())
