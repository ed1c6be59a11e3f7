"""Which files of a folder are documents, and why others are not."""

import os
import sys

import pytest

from valuembed.data.documents import find_documents
from valuembed.errors import InputError


def names(found):
    return [each.name for each in found]


def aside(tmp_path):
    return {each.name: each.reason for each in find_documents(tmp_path)[1]}


def test_files_come_sorted_with_size_and_time(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/two.md", "a.txt", "b/one.PDF", "LICENSE", ".hidden.md"):
        (tmp_path / name).write_text("text")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.txt").write_text("text")
    found, rest = find_documents(tmp_path)
    assert names(found) == ["LICENSE", "a.txt", "b/one.PDF", "b/two.md"]
    assert rest == []
    state = (tmp_path / "a.txt").stat()
    assert (found[1].path, found[1].size, found[1].modified) == (tmp_path / "a.txt", 4, state.st_mtime_ns)


def test_reasons(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.docx.xz").write_bytes(b"x")
    (tmp_path / "empty.md").write_bytes(b"")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(300_000_000)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("x")
    assert aside(tmp_path) == {
        "a.png": "of a kind that nothing reads: .png",
        "b.docx.xz": "of a kind that nothing reads: .xz",
        "empty.md": "empty: there is nothing in it",
        "env": "a virtual environment of Python, no folder of documents",
        "large.txt": "300 MB; of text at most 50 MB are read: split it",
        "node_modules": "filled by programs, no folder of documents",
    }


def test_rows_may_be_large(tmp_path):
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.truncate(300_000_000)
    assert names(find_documents(tmp_path)[0]) == ["large.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_links(tmp_path):
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "outside.md").write_text("secret")
    (root / "a.md").write_text("text")
    (root / ".kept.md").write_text("text")
    (root / "again.md").symlink_to("a.md")
    (root / "shown.md").symlink_to(".kept.md")
    (root / "inner" / "loop").symlink_to("..")
    (root / "out.md").symlink_to(tmp_path / "outside.md")
    (root / "dead.md").symlink_to("nowhere.md")
    (tmp_path / "link").symlink_to(root)
    for given in (root, tmp_path / "link"):
        assert names(find_documents(given)[0]) == ["a.md", "shown.md"]
    outside = os.path.realpath(tmp_path / "outside.md")
    assert aside(root) == {
        "dead.md": "a link to nowhere.md, which leads nowhere",
        "out.md": f"a link out of the folder, to {outside}; copy that into the folder to have it read",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of others refuse such names")
def test_names_that_are_no_text_and_files_that_are_none(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("text")
    os.mkfifo(tmp_path / "pipe.txt")
    assert aside(tmp_path) == {
        "caf\N{REPLACEMENT CHARACTER}.txt": "its name is not valid UTF-8; rename it",
        "pipe.txt": "a pipe, a socket or a device, no file",
    }


def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert aside(tmp_path) == {"locked": "the folder cannot be read: Permission denied"}


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not there; give a folder of documents"):
        find_documents(tmp_path / "nowhere")
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(InputError, match=r"a\.md is a file; give a folder of documents"):
        find_documents(tmp_path / "a.md")
