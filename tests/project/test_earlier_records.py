"""What a version recorded still matches when recipes have gained a field that it did not know."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
from fakes import FakeEncoder
from shared_jobs import write_texts
from stored import some_words, write_embeddings

from valuembed.backbone import fingerprint
from valuembed.backbone.checkpoints.calibration_record import CalibrationRecord, check_recipe
from valuembed.corpus import job
from valuembed.corpus.job import embed_corpus
from valuembed.errors import InputError, OutputError, RecipeError
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe, recipe_differences
from valuembed.search.exact import open_embeddings, search
from valuembed.training.finetune import _open_state
from valuembed.vectors.provenance import VectorSpec
from valuembed.vectors.recorded import recorded_options

WORDS = some_words(20)


@dataclass(frozen=True, kw_only=True)
class LaterRecipe(Recipe):
    gained: str = "usual"


def later(given: Recipe, **changed: object) -> LaterRecipe:
    return LaterRecipe(**{**{field.name: getattr(given, field.name) for field in fields(given)}, **changed})


@pytest.fixture
def turn(monkeypatch):
    """Turn into the version whose recipes have one field more."""

    def turned():
        for name, module in list(sys.modules.items()):
            if name.startswith("valuembed.") and vars(module).get("Recipe") is Recipe:
                monkeypatch.setattr(module, "Recipe", LaterRecipe)
        for name, known in METHODS.items():
            monkeypatch.setitem(METHODS, name, later(known))

    return turned


def encoder(**choices):
    """A model of the later version."""
    return FakeEncoder(gained=choices.pop("gained", "usual"), **choices)


def test_recorded_recipes_differ_where_they_mean_something_else(turn):
    before = METHODS["va"].to_dict()
    turn()
    assert recipe_differences(before, METHODS["va"]) == {}
    assert recipe_differences(before, later(METHODS["va"], method="mine")) == {}
    assert recipe_differences(before, later(METHODS["va"], gained="other")) == {"gained": ("usual", "other")}


def test_a_field_that_this_version_does_not_know_sets_a_record_apart():
    assert recipe_differences({**METHODS["va"].to_dict(), "gained": "x"}, METHODS["va"]) == {"gained": ("x", None)}


def test_embeddings(tmp_path, turn):
    path = write_embeddings(tmp_path / "a.parquet", WORDS)
    turn()
    files = open_embeddings(path)
    assert search(encoder(), WORDS[3], files, k=1)[0].text == WORDS[3]
    with pytest.raises(InputError, match=r"cannot be compared: gained 'usual' against 'other'$"):
        search(encoder(gained="other"), WORDS[3], files, k=1)


def test_an_index(tmp_path, turn):
    pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
    from valuembed.search.index import Index, build_index

    build_index(write_embeddings(tmp_path / "a.parquet", WORDS), tmp_path / "index", progress=False)
    turn()
    new = write_embeddings(tmp_path / "b.parquet", some_words(20, seed=1), model=encoder())
    assert build_index(new, tmp_path / "index", progress=False).rows == 40
    assert Index.open(tmp_path / "index").search(encoder(), WORDS[3], k=1)[0].text == WORDS[3]


def test_a_job(tmp_path, monkeypatch, turn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "POLL_SECONDS", 0.01)
    write_texts(tmp_path / "a.txt", 25)

    def embed(model):
        return embed_corpus(model, ["a.txt"], "out", rows_per_shard=10, progress=False)

    embed(FakeEncoder())
    next((tmp_path / "out").glob("*-last.parquet")).unlink()
    turn()
    done = embed(encoder())
    assert (done.rows, done.run.rows) == (25, 5)
    with pytest.raises(OutputError, match=r"other settings .*: gained 'usual' against 'other'; give the same"):
        embed(encoder(gained="other"))


def test_a_calibration(turn):
    made = CalibrationRecord(kind="centre", recipe=METHODS["va"], width=8, size=8, texts=9, corpus="ab").to_dict()
    turn()
    record = CalibrationRecord.from_dict(json.loads(json.dumps(made)))
    check_recipe(record, METHODS["va"], "a", "b")
    with pytest.raises(RecipeError, match=r"with gained 'usual', asked for is 'other'\. Load"):
        check_recipe(record, later(METHODS["va"], gained="other"), "a", "b")


def test_a_run_of_training(tmp_path, turn):
    assert _open_state(tmp_path / "state", {"recipe": METHODS["va"].to_dict(), "pairs": 9}) is None
    turn()
    assert _open_state(tmp_path / "state", {"recipe": METHODS["va"].to_dict(), "pairs": 9}) is None
    with pytest.raises(OutputError, match=r"stopped, with recipe\.gained=\"usual\"; asked for is \"other\""):
        _open_state(tmp_path / "state", {"recipe": later(METHODS["va"], gained="other").to_dict(), "pairs": 9})


def test_results_of_an_evaluation(turn):
    before = {name: fingerprint("content", known, dtype="float32") for name, known in METHODS.items()}
    turn()
    assert before == {name: fingerprint("content", known, dtype="float32") for name, known in METHODS.items()}
    assert fingerprint("content", later(METHODS["va"], gained="other"), dtype="float32") != before["va"]


def test_the_model_of_a_record_is_loaded_with_what_it_lacks(turn):
    made = VectorSpec.of(FakeEncoder())
    turn()
    asked = recorded_options(made, "a.parquet", {"model": "bundled"})["method"]
    assert (type(asked), asked.weights, asked.gained) == (LaterRecipe, "last", "usual")


def test_a_boolean_in_place_of_the_name_of_an_alignment(tmp_path):
    class Earlier(FakeEncoder):
        def __init__(self, aligned):
            super().__init__()
            choices = {name: value for name, value in self.recipe.to_dict().items() if name != "alignment"}
            self.recipe = SimpleNamespace(to_dict=lambda: {**choices, "aligned": aligned})

    path = write_embeddings(tmp_path / "a.parquet", WORDS, model=Earlier(True))
    assert search(FakeEncoder(), WORDS[3], open_embeddings(path), k=1)[0].text == WORDS[3]
    raw = write_embeddings(tmp_path / "b.parquet", WORDS, model=Earlier(False))
    with pytest.raises(InputError, match=r"cannot be compared: alignment 'none' against 'projection'$"):
        search(FakeEncoder(), WORDS[3], open_embeddings(raw), k=1)
