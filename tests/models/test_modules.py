"""The paths that saved folders name: those of today, and those of folders that were saved earlier."""

import json

import numpy as np
import pytest
from saved_models import assert_saved_alike
from sentence_transformers import SentenceTransformer
from some_texts import some_texts

import valuembed
from valuembed import modules
from valuembed.analysis.calibration_fit import calibrate

EARLY = {
    "valuembed.modules.ValueTransformer": "valuembed.module.ValueTransformer",
    "valuembed.modules.Calibration": "valuembed.calibration.Calibration",
}
TEXTS = some_texts(5)


@pytest.fixture(scope="module")
def model(folder):
    return calibrate(valuembed.load(folder, "va"), some_texts(40), kind="centre")


def types(folder):
    return [module["type"] for module in json.loads((folder / "modules.json").read_text("utf-8"))]


def test_saved_folders_name_paths_that_stay(model, tmp_path):
    model.save_pretrained(str(tmp_path))
    assert types(tmp_path)[:2] == list(EARLY)
    for path in EARLY:
        assert getattr(modules, path.rpartition(".")[2]).__module__ == "valuembed.modules"


def test_folders_with_earlier_paths_load(model, tmp_path):
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    (tmp_path / "modules.json").write_text(
        json.dumps([{**module, "type": EARLY.get(module["type"], module["type"])} for module in saved]), "utf-8"
    )
    assert types(tmp_path)[:2] == list(EARLY.values())
    assert_saved_alike(model, valuembed.load(tmp_path), TEXTS)
    plain = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert valuembed.info(tmp_path).calibration is not None
    again = tmp_path / "again"
    valuembed.load(tmp_path).save_pretrained(str(again))
    assert types(again)[:2] == list(EARLY)
