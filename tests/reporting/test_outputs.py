"""Results are there whole or not at all, and nothing is replaced that should not be."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from saved_models import WHITENED, assert_saved_alike
from some_texts import some_texts

from valuembed._utils.atomic import NewFile
from valuembed.analysis.calibration_fit import calibrate
from valuembed.errors import InputError, MissingExtraError, OutputError
from valuembed.models.calibration import Calibration, find_calibration
from valuembed.models.loading import load
from valuembed.models.saving import check_model_folder, save_model
from valuembed.reporting.outputs import check_picture, replace_text, replacing, results_folder

TEXTS = some_texts(20)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its text; folders that are empty count."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path.read_text() if path.is_file() else ""
        for name, path in found.items()
        if path.is_file() or not any(path.iterdir())
    }


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
        with pytest.raises(OutputError, match=r"^cannot write .*/no/a\.md: No such file or directory$"):
            replace_text(tmp_path / "no" / "a.md", "")


class TestResultsFolder:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_is_made_with_those_above_it(self, tmp_path):
        for _ in range(2):
            assert results_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        assert tree(tmp_path) == {"a/b": ""}

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        for place, reason in (("file", "File exists"), ("file/deep", "Not a directory")):
            with pytest.raises(OutputError, match=f"^cannot write into {tmp_path / place}: {reason}$"):
                results_folder(tmp_path / place)

    def test_without_the_right_to_write(self, tmp_path, monkeypatch):
        # Patched, since a superuser may write anywhere.
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        with pytest.raises(OutputError, match=f"^cannot write into {tmp_path}: Permission denied$"):
            results_folder(tmp_path)

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r'run: pip install .*\[plot\]"'):
            results_folder(tmp_path / "new")
        assert tree(tmp_path) == {}


class TestCheckPicture:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_a_new_one_and_one_that_is_there(self, tmp_path):
        assert check_picture(str(tmp_path / "a.png")) == tmp_path / "a.png"
        (tmp_path / "A.PNG").touch()
        assert check_picture(tmp_path / "A.PNG") == tmp_path / "A.PNG"

    def test_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "folder.png").mkdir()
        for name, reason in (
            ("a.jpg", "has the extension '.jpg'; name a file that ends in .png"),
            ("a", "has the extension ''; name a file that ends in .png"),
            ("folder.png", "is a folder; name a file in it"),
        ):
            with pytest.raises(OutputError, match=f"^picture {tmp_path / name} {re.escape(reason)}$"):
                check_picture(tmp_path / name)
        message = f"^picture {tmp_path / 'no' / 'a.png'}: the folder {tmp_path / 'no'} does not exist; create it first$"
        with pytest.raises(OutputError, match=message):
            check_picture(tmp_path / "no" / "a.png")
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        with pytest.raises(OutputError, match=f"^cannot write into {tmp_path}: Permission denied$"):
            check_picture(tmp_path / "a.png")

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r'run: pip install .*\[plot\]"'):
            check_picture(tmp_path / "a.png")


class TestSaveModel:
    def test_appears_complete_or_not_at_all(self, folder, tmp_path, monkeypatch):
        model = calibrate(load(folder, "va"), TEXTS)

        def fails(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Calibration, "save", fails)
            with pytest.raises(OutputError, match=re.escape(f"cannot write {tmp_path / 'a'}: No space left on device")):
                save_model(model, tmp_path / "a")
        assert list(tmp_path.iterdir()) == []
        save_model(model, tmp_path / "new" / "a")
        again = load(tmp_path / "new" / "a")
        assert find_calibration(again) is not None
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
        assert_saved_alike(model, again, TEXTS, tolerance=WHITENED)

    def test_its_temporary_name_stands_nowhere(self, folder, tmp_path):
        save_model(load(folder, "va"), tmp_path / "a")
        texts = [path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()]
        assert texts
        assert not any(b".tmp" in text or str(tmp_path).encode() in text for text in texts)

    def test_notes_are_files_beside_it(self, folder, tmp_path):
        save_model(load(folder, "va"), tmp_path / "a", notes={"why.json": "{}\n", "más.txt": "ñ"})
        assert (tmp_path / "a" / "why.json").read_text() == "{}\n"
        assert (tmp_path / "a" / "más.txt").read_text("utf-8") == "ñ"
        assert load(tmp_path / "a").recipe.method == "va"

    def test_replaces_a_model_only_when_asked(self, folder, tmp_path):
        path = tmp_path / "a"
        save_model(load(folder, "va"), path, notes={"old.txt": ""})
        other = load(folder, "wva")
        with pytest.raises(OutputError, match=re.escape(f"output {path} exists and is not empty; choose another name")):
            save_model(other, path)
        assert load(path).recipe.method == "va"
        save_model(other, path, overwrite=True)
        assert load(path).recipe.method == "wva"
        assert not (path / "old.txt").exists()

    def test_one_that_is_replaced_by_what_was_made_of_it(self, folder, tmp_path):
        path = tmp_path / "a"
        save_model(calibrate(load(folder, "va"), TEXTS, size=3), path)
        assert load(path).get_embedding_dimension() == 3
        save_model(calibrate(load(path), TEXTS, size=2), path, overwrite=True)
        assert load(path).get_embedding_dimension() == 2

    def test_never_replaces_anything_else(self, tmp_path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "mine.txt").touch()
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        with pytest.raises(OutputError, match="notes holds no model of valuembed, so it is not overwritten"):
            check_model_folder(tmp_path / "notes", overwrite=True)
        with pytest.raises(OutputError, match="file is a file; name a folder for the model"):
            check_model_folder(tmp_path / "file", overwrite=True)
        assert check_model_folder(tmp_path / "empty") == tmp_path / "empty"
        assert check_model_folder(str(tmp_path / "new")) == tmp_path / "new"


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
