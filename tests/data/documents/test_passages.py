"""Folders of small documents, read and cut: what comes out, and why some are set aside."""

import gzip
import json
import os
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_files import docx, pdf

import valuembed.data.documents.passages as passages_file
from valuembed.data.documents import DocumentFile, Extraction, Splitter, extract, find_documents, read_passages
from valuembed.errors import DocumentError, InputError, MissingExtraError


def words(text):
    return len(text.split())


@pytest.fixture
def document(tmp_path):
    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        state = path.stat()
        return DocumentFile(name, path, state.st_size, state.st_mtime_ns)

    return make


def read(file, budget=50):
    return read_passages(file, Splitter(budget, words))


def told(file, budget=50):
    return [(each.text, each.headings) for each in read(file, budget)]


def refusal(file):
    with pytest.raises(DocumentError) as caught:
        read(file)
    return str(caught.value)


class TestEachKind:
    def test_markdown(self, document):
        front, rest = "---\ntitle: Of tea\n---\n", "<!-- no -->\n## Milk\n\n- a\n- b\n"
        text = f"{front}# Tea\n\nWarm the *pot* ([how](https://x.y)).\n\n{rest}"
        found = read(document("a.md", text), 8)
        assert [(each.text, each.headings, each.line) for each in found] == [
            ("Tea\n\nWarm the pot (how).", ("Tea",), 4),
            ("Milk\n\n- a\n- b", ("Tea", "Milk"), 9),
        ]
        assert {each.title for each in found} == {"Of tea"}

    def test_markdown_tables_and_code(self, document):
        text = "Sizes:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n\ny = 2\n```\n\n1. one\n2. two\n"
        assert extract(document("a.md", text)).text == ("Sizes:\n\na | b\n1 | 2\n\nx = 1\n\ny = 2\n\n1. one\n2. two")

    def test_restructuredtext(self, document):
        note = "Milk\n----\n\n.. note::\n   Pour it last please.\n"
        text = f"=====\nTea\n=====\n\n.. _target:\n\nWarm the pot now.\n\n{note}"
        assert told(document("a.rst", text), 8) == [
            ("Tea\n\nWarm the pot now.", ("Tea",)),
            ("Milk\n\n.. note::\n   Pour it last please.", ("Tea", "Milk")),
        ]

    @pytest.mark.parametrize("name", ["notes.txt", "README", "README.Debian", "server.log"])
    def test_plain_text_is_one_document(self, document, name):
        (only,) = read(document(name, "first line\nsecond line\r\n\r\nthird\n"))
        assert (only.text, only.title, only.line) == ("first line\nsecond line\n\nthird", None, 1)

    def test_packed_text(self, document):
        assert told(document("changelog.gz", gzip.compress(b"Fixed."))) == [("Fixed.", ())]

    def test_capitals_above_what_is_indented(self, document):
        found = read(document("page.txt", "NAME\n     cat - show\n\nOPTIONS\n     -n with numbers on each line\n"), 8)
        assert [(each.headings, each.line) for each in found] == [(("NAME",), 1), (("OPTIONS",), 4)]

    def test_a_manual_page(self, document):
        page = (
            '.\\" comment\n.de Xx\n.SH no\n..\n.TH CAT 1\n.SH NAME\ncat \\- show \\fBfiles\\fR\n.SH OPTIONS\n'
            ".TP\n.BR \\-n , \\ \\-\\-number\nnumber \\(lqlines\\(rq\n.IP \\(bu 2\nC:\\e\n.nf\na\n  b\n.fi\n"
        )
        found = extract(document("cat.1.gz", gzip.compress(page.encode())))
        assert found.title == "CAT(1)"
        assert found.text == ('NAME\n\ncat - show files\n\nOPTIONS\n\n-n, --number: number "lines"\n\n- C:\\\n\na\n  b')
        assert [heading.title for heading in found.headings] == ["NAME", "OPTIONS"]
        assert found.line(found.text.index("-n,")) == 10

    def test_html(self, document):
        page = """<html><head><title>Tea &amp; milk</title><style>p {}</style></head><body>
        <nav><a href=x>Home</a></nav><div class="sidebar">Menu</div><script>alert(1)</script>
        <h1>Tea<a class="headerlink" href="#t">¶</a></h1><p>Warm <b>the</b>
        pot.<ul><li>first<li>second<ul><li>inner</ul></ul>
        <table><thead><tr><th>a<th>b</thead><tr><td>1<td>2</table><pre>x\n  y</pre><footer>(c)</footer></body>"""
        found = extract(document("a.html", page))
        assert found.title == "Tea & milk"
        assert found.text == "Tea\n\nWarm the pot.\n\n- first\n- second\n  - inner\n\na | b\n1 | 2\n\nx\n  y"
        assert [heading.title for heading in found.headings] == ["Tea"]

    def test_html_whose_main_part_is_marked(self, document):
        page = "<body><div>around</div><main><p>The subject of this page.</p></main></body>"
        assert extract(document("a.htm", page)).text == "The subject of this page."

    def test_broken_html(self, document):
        assert told(document("a.html", "<p>One<b>bold <i>and <table><td>cell<div>deep")) == [
            ("Onebold and\n\ncell deep", ())
        ]

    def test_pdf(self, document):
        body = [
            (50, 700 - 14 * n, 10, line) for n, line in enumerate(("Warm the pot be-", "fore you pour.", "Then wait."))
        ]
        first = [(50, 780, 8, "The Book"), (50, 730, 20, "Tea"), *body, (300, 20, 8, "1")]
        rest = [
            [(50, 780, 8, "The Book"), (50, 700, 10, f"Page about {name}."), (300, 20, 8, "9")] for name in ("a", "b")
        ]
        found = read(document("a.pdf", pdf(first, *rest, title="Of tea")), 12)
        assert [(each.text, each.headings, each.page) for each in found] == [
            ("Tea\n\nWarm the pot before you pour. Then wait.", ("Tea",), 1),
            ("Page about a.\n\nPage about b.", ("Tea",), 2),
        ]
        assert {(each.title, each.line) for each in found} == {("Of tea", None)}

    def test_packed_pdf(self, document):
        assert told(document("a.pdf.gz", gzip.compress(pdf([(50, 700, 10, "Warm the pot.")])))) == [
            ("Warm the pot.", ())
        ]

    def test_word(self, document):
        data = docx(("Heading1", "Tea"), ("", "Warm the pot."), ("Heading2", "Milk"), ("", "Last of all please."))
        assert told(document("a.docx", data), 6) == [
            ("Tea\n\nWarm the pot.", ("Tea",)),
            ("Milk\n\nLast of all please.", ("Tea", "Milk")),
        ]
        assert read(document("b.docx", docx(("", "Text."), title="Of tea")))[0].title == "Of tea"

    def test_mail(self, document):
        mail = (
            "From: Ann <a@x.y>\nTo: b@x.y\nSubject: =?utf-8?q?K=C3=A4se?=\nMIME-Version: 1.0\n"
            'Content-Type: multipart/mixed; boundary="m"\n\n--m\nContent-Type: multipart/alternative; boundary="i"\n\n'
            "--i\nContent-Type: text/plain; charset=latin-1\nContent-Transfer-Encoding: 8bit\n\nIst \xe4lter.\n"
            "--i\nContent-Type: text/html\n\n<p>other</p>\n--i--\n--m\nContent-Type: application/pdf\n"
            'Content-Disposition: attachment; filename="a.pdf"\n\nxx\n--m--\n'
        )
        (only,) = read(document("a.eml", mail.encode("latin-1")))
        assert (only.title, only.headings) == ("Käse", ("Käse",))
        assert only.text == "Käse\n\nFrom: Ann <a@x.y>\nTo: b@x.y\n\nIst älter.\n\nAttachment: a.pdf"

    def test_mail_that_is_html_alone_and_mail_within_mail(self, document):
        inner = "Subject: Inner\nContent-Type: text/html\n\n<p>Warm <b>it</b>.</p>\n"
        outer = 'Subject: Outer\nContent-Type: multipart/mixed; boundary="m"\n\n'
        mail = f"{outer}--m\nContent-Type: message/rfc822\n\n{inner}\n--m--\n"
        assert told(document("a.eml", mail)) == [("Outer\n\nInner\n\nWarm it.", ("Outer", "Inner"))]

    def test_code(self, document):
        method = "    # The size.\n    def warm(self, to):\n        return to + 1 + 2 + 3\n"
        code = f'"""Of tea."""\n\nimport os\n\n\nclass Pot:\n{method}'
        found = read(document("a.py", code), 8)
        assert [(each.headings, each.line) for each in found] == [
            ((), 1),
            (("class Pot", "def warm"), 6),
            (("class Pot", "def warm"), 9),
        ]
        assert "".join(each.text for each in found).count("# The size.") == 1

    def test_settings_and_c(self, document):
        assert read(document("a.toml", "[project]\nname = 1\n"))[0].headings == ("project",)
        first = "#include <a.h>\n\nstatic int\nwarm(int to)\n{\n  return to;\n}\n\n"
        c = f"{first}int pour(void) {{\n  return 1 + 2 + 3 + 4;\n}}\n"
        assert [each.headings for each in read(document("a.c", c), 10)][-1] == ("pour",)

    def test_offsets_lead_into_the_text(self, document):
        file = document("a.md", "# A\n\n" + "\n\n".join(f"Sentence one of {n}. And two." for n in range(30)))
        text = extract(file).text
        found = read(file, 12)
        assert len(found) > 5
        assert all(each.text == text[each.start : each.end] and words(each.text) <= 12 for each in found)
        assert [each.chunk for each in found] == list(range(len(found)))
        assert "".join("".join(each.text.split()) for each in found) == "".join(text.split())

    def test_what_has_no_borders_is_cut_in_time_that_grows_with_its_length(self):
        counted = []

        def characters(text):
            counted.append(len(text))
            return len(text)

        costs = []
        for length in (40_000, 80_000):
            counted.clear()
            found = Splitter(1000, characters).passages(Extraction("x" * length))
            assert sum(len(each.text) for each in found) == length
            costs.append(sum(counted))
        assert costs[1] < 2.2 * costs[0]


class TestRows:
    ROWS = ({"title": "T", "text": "one"}, {"title": None, "text": " "}, {"text": "three words here"})

    def test_json_lines(self, document):
        file = document("a.jsonl", "\n".join(map(json.dumps, self.ROWS)))
        assert [(each.text, each.title, each.line, each.chunk) for each in read(file)] == [
            ("one", "T", 1, 0),
            ("three words here", None, 3, 1),
        ]
        with pytest.raises(DocumentError, match="a file of rows, each a text of its own"):
            extract(file)

    def test_csv_and_long_rows(self, document):
        found = read(document("a.csv", "text\none two three four\nfive\n"), 2)
        assert [(each.text, each.line, each.chunk, each.start) for each in found] == [
            ("one two", 2, 0, 0),
            ("three four", 2, 1, 8),
            ("five", 3, 2, 0),
        ]

    def test_parquet(self, document, tmp_path):
        pq.write_table(pa.table({"text": ["one", "two"], "title": ["T", None]}), tmp_path / "a.parquet")
        file = document("a.parquet", (tmp_path / "a.parquet").read_bytes())
        assert [(each.text, each.title, each.line) for each in read(file)] == [("one", "T", 1), ("two", None, 2)]

    def test_json_is_a_list_of_rows_or_a_text(self, document):
        assert [each.text for each in read(document("a.json", json.dumps(self.ROWS)))] == ["one", "three words here"]
        assert told(document("b.json", '{"name": 1}')) == [('{"name": 1}', ())]
        assert told(document("c.json", "[not json")) == [("[not json", ())]

    def test_without_a_column_of_texts(self, document):
        assert refusal(document("a.csv", "a,b\n1,2\n")) == "has no column 'text'; its columns are 'a', 'b'"
        assert refusal(document("a.jsonl", '{"a": 1}')) == "has no column 'text'; its columns are 'a'"


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
    def test_unicode(self, document, encoding):
        text = "Käse und Brot, jeden Tag.\n" * 4
        assert read(document("a.txt", text.encode(encoding)))[0].text == text.strip()

    def test_an_old_encoding_is_guessed(self, document):
        text = "Der Käse schmeckt süß und würzig, später größer als früher.\n" * 8
        assert "süß und würzig" in read(document("a.txt", text.encode("latin-1")), 500)[0].text

    def test_what_a_page_declares_counts(self, document):
        page = '<meta charset="iso-8859-2"><p>Zażółć gęślą jaźń</p>'.encode("iso-8859-2")
        assert read(document("a.html", page))[0].text == "Zażółć gęślą jaźń"

    def test_two_encodings_in_one_file(self, document):
        data = "Käse in UTF-8\n".encode() + "Käse in Latin-1\n".encode("latin-1")
        assert read(document("a.txt", data))[0].text == "Käse in UTF-8\nKäse in Latin-1"

    def test_binary_content(self, document):
        assert refusal(document("a.txt", b"MZ\x90\x00\x03\x00\x00\x00\x04" * 9)) == (
            "no text: its byte 3 is NUL (36 in all); it may be a program or packed data"
        )


class TestBadInput:
    def test_a_pdf_of_pictures(self, document):
        assert refusal(document("a.pdf", pdf([], []))) == (
            "no text in its 2 pages, only pictures; make text of them by OCR first (ocrmypdf)"
        )

    def test_a_damaged_pdf(self, document):
        assert refusal(document("a.pdf", b"%PDF-1.4 nothing")).startswith("PDFium cannot read it (")

    def test_a_pdf_with_a_password(self, document):
        data = pdf([(50, 700, 10, "Text")])
        encrypt = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >> /ID [<00> <00>] /Root" % (
            b"00" * 32,
            b"11" * 32,
        )
        assert refusal(document("a.pdf", data.replace(b"/Root", encrypt))).startswith("locked by a password; ")

    def test_word_files_that_are_none(self, document):
        assert refusal(document("a.docx", b"hello")).startswith("no readable .docx file (File is not a zip file)")
        assert refusal(document("b.docx", b"\xd0\xcf\x11\xe0" * 9)).startswith("locked by a password, or of the older")
        entity = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
        assert refusal(document("c.docx", docx(("", "&x;"), start=entity))).startswith("its XML declares entities")

    def test_a_zip_bomb(self, document, tmp_path):
        with zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("word/document.xml", bytes(51_000_000))
        assert refusal(document("a.docx", (tmp_path / "z").read_bytes())).startswith("unpacked, its parts have 51 MB")

    def test_a_packed_text_that_unpacks_to_too_much(self, document):
        data = gzip.compress(bytes(20_000_001))
        assert refusal(document("a.md.gz", data)) == (
            "unpacked more than 20 MB; of Markdown at most 20 MB are read: split it"
        )

    def test_damaged_gzip(self, document):
        assert "gzip decompress failed" in refusal(document("a.txt.gz", gzip.compress(b"x" * 99)[:20] + bytes(20)))

    def test_html_that_is_nested_without_end(self, document):
        assert refusal(document("a.html", "<div>" * 6000)).startswith("its HTML is nested more than 5,000 elements")
        assert told(document("b.html", "<div>" * 3000 + "deep")) == [("deep", ())]

    def test_no_mail(self, document):
        assert refusal(document("a.eml", "just text")).startswith("no mail: none of the headers")

    def test_nothing_but_blanks(self, document):
        assert refusal(document("a.txt", " \n \n")) == "there is no text in it"

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (RecursionError("deep"), "it is nested too deep to be read"),
            (MemoryError(), "it takes more memory to read than there is; split it"),
            (KeyError("a\nb"), "its PDF is damaged or of an unknown sort: KeyError: 'a\\nb'"),
            (PermissionError(13, "Permission denied"), "cannot be read: Permission denied"),
        ],
    )
    def test_whatever_a_library_raises_is_a_reason(self, document, monkeypatch, error, reason):
        def fail(data):
            raise error

        monkeypatch.setitem(passages_file._BYTES, "PDF", fail)
        assert refusal(document("a.pdf", b"x")) == reason

    def test_a_missing_library_is_named_with_its_extra(self, document, monkeypatch):
        def fail(module, extra):
            raise MissingExtraError(f"{module} of {extra}")

        monkeypatch.setattr("valuembed.data.documents.pdf.require", fail)
        with pytest.raises(MissingExtraError, match="pypdfium2 of documents"):
            read(document("a.pdf", b"x"))

    def test_a_file_that_changes(self, document, monkeypatch):
        file = document("a.txt", "before")
        changed = "it changed since it was found; run the command again"
        assert refusal(replace(file, size=99)) == changed

        def decoded(data, **_):
            os.utime(file.path, ns=(1, 1))
            return data.decode()

        monkeypatch.setattr(passages_file, "decoded", decoded)
        assert refusal(file) == changed
        file.path.unlink()
        assert refusal(file) == "gone since it was found: No such file or directory"

    def test_a_budget_of_nothing(self):
        with pytest.raises(InputError, match="budget=0 has to be at least 1 token"):
            Splitter(0, words)


def test_a_folder_is_found_and_read(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\nText.")
    files, aside = find_documents(tmp_path)
    assert [(each.name, told(each)) for each in files] == [("a.md", [("A\n\nText.", ("A",))])]
    assert aside == []
