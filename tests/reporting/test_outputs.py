"""Models are saved whole or not at all, and nothing is replaced that should not be."""

from __future__ import annotations

import os
import re
import sys

import pytest
from saved_models import WHITENED, assert_saved_alike
from some_texts import some_texts
from trees import tree

from valuembed.analysis.calibration_fit import calibrate
from valuembed.errors import MissingExtraError, OutputError
from valuembed.models.calibration import Calibration, find_calibration
from valuembed.models.loading import load
from valuembed.models.saving import check_model_folder, save_model
from valuembed.reporting.outputs import check_picture, results_folder

TEXTS = some_texts(20)


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
