"""The model that made stored vectors is what is loaded for them, unless another one is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder
from gguf_files import tiny_gguf
from running import fails, run, succeeds
from stored import write_embeddings

from valuembed.backbone.checkpoints.location import LoadedFrom, locate
from valuembed.cli import (
    embed as cli_embed,
    main as cli,  # noqa: F401
    search as cli_search,
)
from valuembed.corpus.single_file import embed_file
from valuembed.errors import InputError, RecipeError
from valuembed.models.loading import load
from valuembed.recipes.methods import METHODS, PURPOSES
from valuembed.recipes.recipe import Recipe
from valuembed.search.exact import load_for, search
from valuembed.vectors.provenance import VectorSpec
from valuembed.vectors.reader import EmbeddingFiles
from valuembed.vectors.recorded import find_model, recorded_choices, recorded_job, recorded_options

TEXTS = ["A cat sleeps on the mat.", "The train was late.", "Rain fell all night."]
RECIPE = Recipe(signal="value", weights="mean", layers=(1, 2), template=("x {text}",), method="mine")


def made(loaded_from=None, recipe=RECIPE, model="model"):
    plain = json.loads(json.dumps(recipe.to_dict()))
    return VectorSpec(model, plain, np.ones(4, np.float32), loaded_from=loaded_from)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def asked(monkeypatch):
    """Commands get a fake model; the list holds the options it was asked for with."""
    asked = []

    def loading(options):
        asked.append(options)
        return FakeEncoder(dtype=options.get("dtype", "float32"), max_tokens=options.get("max_tokens"))

    monkeypatch.setattr(cli_search, "load_encoder", loading)
    monkeypatch.setattr(cli_embed, "load_encoder", loading)
    return asked


class TestWhatIsRecorded:
    def test_never_a_path(self, folder, texts, tmp_path, monkeypatch):
        monkeypatch.chdir(folder)
        embed_file(load("."), texts, tmp_path / "out.parquet")
        vector_spec = EmbeddingFiles.open(tmp_path / "out.parquet").vector_spec
        assert vector_spec.loaded_from == LoadedFrom("tiny", None, is_folder=True)
        assert str(folder.parent) not in json.dumps(vector_spec.to_record())

    def test_the_bundled_model_is_no_folder(self):
        assert locate("bundled").loaded_from == LoadedFrom("bundled")

    def test_survives_being_written(self):
        vector_spec = made(LoadedFrom("a/b", "c0ffee"))
        assert VectorSpec.from_record(vector_spec.to_record()).loaded_from == vector_spec.loaded_from
        assert VectorSpec.from_record(made().to_record()).loaded_from is None


class TestLoading:
    def test_a_folder_beside_the_file_with_a_recipe_of_ones_own(self, folder, texts, tmp_path):
        shutil.copytree(folder, tmp_path / "mine")
        encoder = load(tmp_path / "mine", RECIPE, max_tokens=64)
        embed_file(encoder, texts, tmp_path / "out.parquet")
        again = load_for(tmp_path / "out.parquet")
        assert again.recipe == encoder.recipe
        assert search(again, TEXTS[1], tmp_path / "out.parquet", k=1)[0].text == TEXTS[1]

    def test_a_saved_folder_and_not_the_model_it_came_from(self, folder, texts, tmp_path, monkeypatch):
        load(folder, "va", layers="1:3").save_pretrained(str(tmp_path / "saved"))
        embed_file(load(tmp_path / "saved"), texts, tmp_path / "out.parquet")
        vector_spec = EmbeddingFiles.open(tmp_path / "out.parquet").vector_spec
        assert vector_spec.model == "tiny"
        assert find_model(vector_spec, tmp_path / "out.parquet") == str(tmp_path / "saved")
        # As well from the working folder, when the file has moved.
        (tmp_path / "far").mkdir()
        moved = (tmp_path / "out.parquet").rename(tmp_path / "far" / "out.parquet")
        monkeypatch.chdir(tmp_path)
        assert load_for(moved).reader.loaded_from == LoadedFrom("saved", None, is_folder=True)

    @pytest.mark.parametrize("name", ["tiny.gguf", "downloaded"])
    def test_a_gguf_file_or_its_folder_beside_the_file(self, name, texts, tmp_path):
        file, _ = tiny_gguf(tmp_path / "made")
        (tmp_path / "downloaded").mkdir()
        place = tmp_path / name
        shutil.copy(file, place / "tiny.gguf" if place.is_dir() else place)
        embed_file(load(place, layers=[1]), texts, tmp_path / "out.parquet")
        record = json.dumps(EmbeddingFiles.open(tmp_path / "out.parquet").vector_spec.to_record())
        assert str(tmp_path) not in record
        assert load_for(tmp_path / "out.parquet").reader.loaded_from == LoadedFrom(name, None, is_folder=True)

    def test_layers_that_another_model_lacks(self, folder, texts, tmp_path):
        embed_file(load("bundled", layers=[8, 9]), texts, tmp_path / "out.parquet")
        message = fails("search", "cat", "--in", tmp_path / "out.parquet", "--model", folder)
        assert message.startswith(f"error: {tmp_path}/out.parquet was made by model 'bundled', method 'aligned_wva'")
        assert ", and the model that is named cannot be read in that way: layers" in message


class TestFindModel:
    def test_a_hub_id_and_the_bundled_model(self):
        assert find_model(made(LoadedFrom("a/b")), "x.parquet") == "a/b"
        assert find_model(made(LoadedFrom("gpt2")), "x.parquet") == "gpt2"
        assert find_model(made(model="bundled"), "x.parquet") == "bundled"
        assert find_model(made(model="a/b"), "x.parquet") == "a/b"
        assert find_model(made(LoadedFrom("a/b:c-Q8_0.gguf")), "x.parquet") == "a/b:c-Q8_0.gguf"

    def test_a_folder_that_is_gone(self, tmp_path):
        place = tmp_path / "x.parquet"
        with pytest.raises(InputError) as caught:
            find_model(made(LoadedFrom("gone", None, is_folder=True)), place)
        assert str(caught.value) == (
            f"{place} was made by the model in a folder 'gone', which is neither in the working folder nor beside "
            f"{place}; name the folder with --model (model=)"
        )
        with pytest.raises(InputError, match="which is not in the working folder; name the folder with --model"):
            find_model(made(model="gone"), "s3://bucket/x.parquet")

    @pytest.mark.parametrize("name", ["../up", "/etc", "..", ".", "", "a/b"])
    def test_a_record_points_nowhere_else(self, name, tmp_path):
        with pytest.raises(InputError, match="holds a damaged record: the model's folder is called"):
            find_model(made(LoadedFrom(name, None, is_folder=True)), tmp_path / "x.parquet")

    @pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b/c", "", "a b"])
    def test_a_name_that_no_model_has(self, name):
        with pytest.raises(InputError, match="holds a damaged record: the model is called"):
            find_model(made(LoadedFrom(name)), "x.parquet")


class TestOptions:
    vector_spec = made(LoadedFrom("a/b", "c0ffee"))

    def test_everything_from_the_record(self):
        given = {"model": None, "method": None, "device": "cpu", "dtype": None}
        expected = {"model": "a/b", "method": RECIPE, "revision": "c0ffee", "device": "cpu"}
        assert recorded_options(self.vector_spec, "x", given) == {**expected, "method": replace(RECIPE, layers=(1, 2))}

    def test_what_is_named_goes_first(self):
        found = recorded_options(self.vector_spec, "x", {"model": "c/d", "layers": "half"})
        assert found == {"model": "c/d", "layers": "half", "method": RECIPE}
        assert recorded_options(self.vector_spec, "x", {"revision": "main"})["revision"] == "main"

    def test_a_method_of_the_same_choices(self):
        # The method's own template, at the layers of the record.
        assert recorded_options(self.vector_spec, "x", {"method": "va"})["method"] == replace(
            METHODS["va"], layers=(1, 2)
        )
        va = made(LoadedFrom("a/b"), replace(RECIPE, method="va"))
        assert recorded_options(va, "x", {"method": "va"})["method"] == replace(RECIPE, method="va")
        mine = replace(RECIPE, layers=(3,))
        assert recorded_options(self.vector_spec, "x", {"method": mine})["method"] == mine

    def test_a_method_of_other_choices(self):
        with pytest.raises(InputError) as caught:
            recorded_options(self.vector_spec, "x", {"method": "aligned_wva"})
        assert str(caught.value) == (
            "x was made by model 'model', method 'mine', layers [1, 2], width 4, not by method 'aligned_wva'; their "
            "vectors cannot be compared: weights 'mean' against 'last'; alignment 'none' against 'residual'"
        )
        with pytest.raises(RecipeError, match="method 'no' is unknown"):
            recorded_options(self.vector_spec, "x", {"method": "no"})

    def test_parts_are_those_of_the_record(self):
        first, *others = METHODS["joined"].parts
        parts = tuple(replace(part, layers=(3,)) for part in others)
        recorded = replace(first, alignment="projection", layers=(1, 2), joined=parts)
        joined = made(LoadedFrom("a/b"), recorded)
        assert recorded_options(joined, "x", {"method": "joined"})["method"] == recorded
        # A purpose that stands for the same method has its parts' layers too.
        assert recorded_options(joined, "x", {"method": "search"})["method"] == replace(
            PURPOSES["search"], layers=(1, 2), joined=parts
        )
        with pytest.raises(InputError, match=r"their vectors cannot be compared: 3 parts against 1$"):
            recorded_options(joined, "x", {"method": "aligned_wva"})
        centred = replace(PURPOSES["search"], centring="general")
        with pytest.raises(InputError, match=r"cannot be compared: centring 'none' against 'general'$"):
            recorded_options(joined, "x", {"method": centred})

    def test_whether_a_norm_sets_the_vectors_apart_is_left_to_the_model(self):
        recorded = replace(METHODS["aligned_wva"], alignment="projection", layers=(1, 2))
        aligned = made(LoadedFrom("a/b"), recorded)
        assert recorded_options(aligned, "x", {"method": "aligned_wva"})["method"] == recorded

    def test_a_damaged_recipe(self):
        vector_spec = VectorSpec("a/b", {"signal": "smell"}, np.ones(4, np.float32))
        with pytest.raises(
            InputError, match=r"^x holds a damaged record of the recipe that made its vectors: a recipe"
        ):
            recorded_options(vector_spec, "x", {})


def test_search_takes_the_model_of_a_file(asked, tmp_path):
    path = write_embeddings(tmp_path / "a.parquet", ["ab", "bc"])
    succeeds("search", "ab", "--in", path)
    assert asked[-1]["model"] == "bundled"
    assert asked[-1]["method"].layers == (2, 3)
    assert "template" not in asked[-1]
    assert fails("search", "ab", "--in", path, "--method", "va").startswith(f"error: {path} was made by model 'fake'")
    assert len(asked) == 1, "a model was loaded for nothing"
    assert "By default it is what SOURCE records." in run("search", "--help").stdout


def test_an_index_keeps_the_record(tmp_path, asked):
    pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
    write_embeddings(tmp_path / "out" / "a.parquet", ["ab", "bc"], file="in.txt")
    succeeds("index", tmp_path / "out", "-o", tmp_path / "index")
    succeeds("search", "ab", "--in", tmp_path / "index")
    assert asked[-1]["model"] == "bundled"


class TestJobs:
    def record(self, dtype="float32"):
        settings = {"text_column": "t", "id_column": None, "chunk": 9, "overlap": 2, "rows_per_shard": 5}
        settings |= {"dtype": dtype, "max_tokens": 64}
        return {"make": made(LoadedFrom("a/b")).to_record(), "settings": settings}

    def test_model_and_settings_are_those_of_the_job(self):
        found = recorded_job(self.record(), "out", {"model": None, "device": "cpu"})
        assert found == {"model": "a/b", "method": RECIPE, "dtype": "float32", "max_tokens": 64, "device": "cpu"}
        assert recorded_job(self.record("bfloat16, weights as int8"), "out", {})["dtype"] == "int8"
        assert recorded_job(self.record(), "out", {"dtype": "float16", "max_tokens": 8})["dtype"] == "float16"

    def test_choices(self):
        given = {"text_column": None, "overlap": 0, "precision": None, "dim": None, "rows_per_shard": 7}
        expected = {"text_column": "t", "overlap": 0, "precision": "float32", "dim": None, "rows_per_shard": 7}
        assert recorded_choices(self.record(), given) == expected

    def test_embed_goes_on_without_being_told_again(self, asked, texts, tmp_path):
        output = tmp_path / "out"
        given = ["--precision", "int8", "--dim", 8, "--rows-per-shard", 2, "--max-tokens", 64]
        succeeds("embed", texts, "-o", output, "--model", "some/model", "--dtype", "bfloat16", *given)
        more = Path(tmp_path / "more.txt")
        more.write_text("another\n")
        assert "4 rows of 2 inputs embedded, 8 wide, int8" in succeeds("embed", texts, more, "-o", output)
        assert asked[-1]["model"] == "bundled", "the fake says that it was loaded as bundled"
        assert (asked[-1]["dtype"], asked[-1]["max_tokens"]) == ("bfloat16", 64)
        message = fails("embed", texts, "-o", output, "--precision", "float16")
        assert "begun with other settings (there against here): precision 'int8' against 'float16'" in message
