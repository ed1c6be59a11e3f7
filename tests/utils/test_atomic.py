"""Files and folders are there whole or not at all, and nothing is replaced that should not be."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from safetensors import SafetensorError
from trees import tree

from valuembed._utils.atomic import NewFile, replace_text, replacing
from valuembed.errors import InputError, OutputError
from valuembed.models.saving import check_model_folder


def write(new: Path, text: str, as_folder: bool) -> None:
    if as_folder:
        new.mkdir()
        new = new / "inside"
    new.write_text(text)


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
class TestReplacing:
    def held(self, text: str, as_folder: bool) -> dict[str, str]:
        return {"out/inside" if as_folder else "out": text}

    def test_the_name_is_taken_at_the_end(self, tmp_path, as_folder):
        with replacing(tmp_path / "out") as new:
            write(new, "one", as_folder)
            assert not (tmp_path / "out").exists()
            assert new.parent == tmp_path
        assert tree(tmp_path) == self.held("one", as_folder)

    def test_what_has_the_name_is_replaced_and_not_mixed(self, tmp_path, as_folder):
        write(tmp_path / "out", "old", as_folder)
        if as_folder:
            (tmp_path / "out" / "older").write_text("x")
        with replacing(str(tmp_path / "out")) as new:
            write(new, "new", as_folder)
            assert "old" in tree(tmp_path).values()
        assert tree(tmp_path) == self.held("new", as_folder)

    @pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), ZeroDivisionError()])
    def test_what_had_the_name_stays_where_the_block_fails(self, tmp_path, as_folder, error):
        write(tmp_path / "out", "old", as_folder)

        def fail():
            with replacing(tmp_path / "out") as new:
                write(new, "new", as_folder)
                raise error

        with pytest.raises(type(error)) as caught:
            fail()
        assert caught.value is error
        assert tree(tmp_path) == self.held("old", as_folder)

    def test_what_is_left_after_a_crash_is_not_taken_for_a_result(self, tmp_path, as_folder):
        with replacing(tmp_path / "scores.json") as new:
            write(new, "{}", as_folder)
            assert list(tmp_path.rglob("*.json")) == []

    def test_a_file_takes_no_folders_place_and_a_folder_no_files(self, tmp_path, as_folder):
        write(tmp_path / "out", "mine", not as_folder)

        def swap():
            with replacing(tmp_path / "out") as new:
                write(new, "new", as_folder)

        reason = "Not a directory" if as_folder else "Is a directory"
        with pytest.raises(OutputError, match=f"^cannot write {re.escape(str(tmp_path))}/out: {reason}$"):
            swap()
        assert tree(tmp_path) == self.held("mine", not as_folder)


@pytest.mark.parametrize("path", [".", "..", "inside/..", "../here", ""])
def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch, path):
    (tmp_path / "here" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")

    def replace():
        with replacing(path):
            raise AssertionError("the work was begun")

    for refused in (replace, lambda: check_model_folder(path), lambda: check_model_folder(path, overwrite=True)):
        with pytest.raises(
            OutputError, match=rf"^output {re.escape(str(Path(path)))} is the working folder or holds it"
        ):
            refused()
    assert tree(tmp_path) == {"here/inside": ""}


class TestReplaceText:
    def test_is_utf8(self, tmp_path):
        for text in ("one", "zwölf \N{GREEK SMALL LETTER LAMDA}\n"):
            replace_text(tmp_path / "a.md", text)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.md": text.encode()}

    def test_a_folder_that_is_not_there(self, tmp_path):
        message = r"^cannot write .*/no/a\.md: No such file or directory; nothing was left there$"
        with pytest.raises(OutputError, match=message):
            replace_text(tmp_path / "no" / "a.md", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_results_take_the_place_of_no_pipe_and_no_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match=r"pipe\.png is a device or a pipe.*name a file"), replacing(pipe) as new:
        new.write_text("new")
    with pytest.raises(OutputError, match=r"pipe\.png is a device or a pipe.*name a file"), NewFile(pipe):
        pass
    assert pipe.is_fifo()


def test_a_full_disk_under_weights_names_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*model: I/O error: No space left"),
        replacing(tmp_path / "model"),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_what_is_there_is_not_said_to_be_gone(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("old")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"a\.md: No space left on device; free some space and run it again$"):
        replace_text(tmp_path / "a.md", "new")
    assert tree(tmp_path) == {"a.md": "old"}
