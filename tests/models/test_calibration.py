"""Calibration: fits worked out by hand, and a module that survives saving, other precisions and other loaders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import WHITENED, assert_same_vectors, assert_saved_alike
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from some_texts import some_texts

from valuembed.backbone.checkpoints.calibration_record import CALIBRATION_TYPE, CalibrationRecord
from valuembed.errors import CheckpointError, InputError, RecipeError
from valuembed.models import calibration
from valuembed.models.calibration import (
    CALIBRATIONS,
    Calibration,
    Projection,
    check_choices,
    find_calibration,
    fit,
    fit_centre,
    fit_filter,
    fit_pca,
    fit_whitening,
    is_of_the_stream,
    project,
)
from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.models.model_info import info
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

# u and v are orthogonal unit vectors. The covariance of +-10u, +-5v with 1/b is (2*100 uu' + 2*25 vv') / 4
# = 50 uu' + 12.5 vv': variances 50 and 12.5, their mean 31.25.
U, V = np.array([0.6, 0.8]), np.array([0.8, -0.6])
CROSS = np.stack([10 * U, -10 * U, 5 * V, -5 * V])
MEAN = np.array([100.0, -7.0])


def close(found: torch.Tensor, expected: object) -> bool:
    return np.allclose(found.numpy(), np.array(expected), rtol=1e-12, atol=1e-12)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def cosines(projection: Projection, vectors: np.ndarray) -> np.ndarray:
    y = (vectors - projection.mean.numpy()) @ projection.matrix.numpy()
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return y @ y.T


class TestFits:
    def test_centre_is_the_mean_and_nothing_else(self):
        found = fit_centre([[1, 2], [3, 6]])
        assert close(found.mean, [2, 4])
        assert close(found.matrix, np.eye(2))
        assert found.mean.dtype == found.matrix.dtype == torch.float64

    def test_centre_at_a_smaller_size_keeps_the_first_coordinates(self):
        assert close(fit_centre([[1, 2, 3], [3, 6, 0]], size=2).matrix, [[1, 0], [0, 1], [0, 0]])

    def test_pca_turns_to_the_directions_of_most_variance(self):
        found = fit_pca(MEAN + CROSS)
        assert close(found.mean, MEAN)
        assert close(found.matrix, np.stack([U, V], axis=1))
        assert close(fit_pca(MEAN + CROSS, size=1).matrix, U[:, None])

    def test_whitening_scales_each_direction_to_variance_1(self):
        found = fit_whitening(MEAN + CROSS, shrinkage=0)
        assert close(found.mean, MEAN)
        assert close(found.matrix, np.stack([U / 50**0.5, V / 12.5**0.5], axis=1))
        white = CROSS @ found.matrix.numpy()
        assert np.allclose(white.T @ white / 4, np.eye(2))

    @pytest.mark.parametrize(
        ("shrinkage", "variances"),
        # (1 - s) * variance + s * 31.25
        [(0.2, (46.25, 16.25)), (0.5, (40.625, 21.875)), (1, (31.25, 31.25))],
    )
    def test_shrinkage_draws_variances_to_their_mean(self, shrinkage, variances):
        found = fit_whitening(CROSS, shrinkage)
        assert close(found.matrix, np.stack([U / variances[0] ** 0.5, V / variances[1] ** 0.5], axis=1))

    def test_whitening_at_a_smaller_size_keeps_the_directions_of_most_variance(self):
        assert close(fit_whitening(CROSS, 0, size=1).matrix, U[:, None] / 50**0.5)

    def test_whitening_of_fewer_texts_than_width_works_with_shrinkage(self):
        # Three points on the first axis of three: variance 2/3, trace 2/3. C' = diag(2/3 (1-s) + 2/9 s, 2/9 s, 2/9 s).
        found = fit_whitening([[-1, 0, 0], [0, 0, 0], [1, 0, 0]], shrinkage=0.9)
        assert np.allclose(np.linalg.norm(found.matrix.numpy(), axis=0) ** -2, [0.6 / 9 + 0.2, 0.2, 0.2])
        # Variances of nothing come out of an eigendecomposition a little below zero.
        assert torch.isfinite(fit_whitening(noise(30, 60), shrinkage=1e-30).matrix).all()

    @pytest.mark.parametrize("fitted", [fit_centre, fit_pca, fit_whitening])
    def test_neither_scale_nor_order_nor_a_turn_of_the_space_changes_a_cosine(self, fitted):
        x = noise(40, 5) * [9, 4, 2, 1, 0.1] + 3
        turn = np.linalg.qr(noise(5, 5, seed=1))[0]
        expected = cosines(fitted(x), x)
        assert np.allclose(cosines(fitted(1000 * x), 1000 * x), expected)
        assert np.allclose(cosines(fitted(x[::-1]), x), expected)
        assert np.allclose(cosines(fitted(x @ turn), x @ turn), expected)

    def test_at_full_size_pca_is_centring(self):
        x = noise(40, 5) * [9, 4, 2, 1, 0.1] + 3
        assert np.allclose(cosines(fit_pca(x), x), cosines(fit_centre(x), x))

    def test_the_signs_of_directions_are_settled(self):
        found = fit_pca(noise(40, 5)).matrix.numpy()
        assert (found[abs(found).argmax(axis=0), range(5)] > 0).all()

    def test_torch_and_numpy_in_any_precision_are_taken(self):
        x = np.round(noise(20, 3) * 8)
        for same in (torch.tensor(x).half(), x.astype("float32"), x.tolist()):
            assert close(fit_whitening(same).matrix, fit_whitening(x).matrix.numpy())


class TestFilter:
    # Singular values 5, 4, 3, 2, 1 on the axes themselves.
    HEAD = torch.diag(torch.tensor([5.0, 4, 3, 2, 1]))

    @pytest.mark.parametrize(
        ("size", "axes"),
        # Of an odd number to drop, one more goes at the small end.
        [(5, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 3]), (3, [1, 2, 3]), (2, [1, 2]), (1, [2])],
    )
    def test_drops_both_ends_of_the_spectrum(self, size, axes):
        found = fit_filter(self.HEAD, size)
        assert close(found.matrix, np.eye(5)[:, axes])
        assert close(found.mean, np.zeros(5))

    @pytest.mark.parametrize("vocabulary", [3, 7, 20])
    def test_directions_are_those_of_the_svd(self, vocabulary, monkeypatch):
        monkeypatch.setattr(calibration, "_ROWS_AT_ONCE", 4)
        head = noise(vocabulary, 7) * [5, 3, 2, 1, 0.7, 0.5, 0.2]
        v = np.linalg.svd(head, full_matrices=True)[2].T
        found = fit_filter(torch.tensor(head), 3).matrix.numpy()
        # With 3 words the last four directions are free, so the middle of 7 is determined in its first column only.
        columns = slice(0, 1) if vocabulary == 3 else slice(0, 3)
        expected = v[:, 2:5][:, columns]
        assert np.allclose(abs((found[:, columns] * expected).sum(axis=0)), 1)

    def test_scale_and_precision_of_the_head_do_not_matter(self):
        head = torch.tensor(noise(20, 6)).bfloat16()
        assert close(fit_filter(head * 4, 2).matrix, fit_filter(head.double(), 2).matrix.numpy())


class TestBadInput:
    @pytest.mark.parametrize("fitted", [fit_centre, fit_pca, fit_whitening])
    @pytest.mark.parametrize("size", [0, -1, 3, 1.0, True, "2"])
    def test_sizes(self, fitted, size):
        message = re.escape(f"size={size!r} has to be a whole number from 1 to 2, the width of the vectors")
        with pytest.raises(RecipeError, match=message):
            fitted(CROSS, size=size)
        with pytest.raises(RecipeError, match=message):
            fit_filter(torch.eye(2), size)

    @pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan"), "0.1", True])
    def test_shrinkages(self, shrinkage):
        message = re.escape(f"shrinkage={shrinkage!r} has to be a number from 0 to 1, such as 0.5")
        with pytest.raises(RecipeError, match=message):
            fit_whitening(CROSS, shrinkage)

    @pytest.mark.parametrize("fitted", [fit_centre, fit_pca, fit_whitening])
    def test_vectors(self, fitted):
        for shape in ((1, 3), (0, 3), (3,)):
            with pytest.raises(InputError, match=re.escape(f"2 vectors or more, [b, w]; got the shape {shape}")):
                fitted(np.ones(shape))
        with pytest.raises(InputError, match="all 4 vectors are the same, and nothing can be fitted on them"):
            fitted(np.full((4, 3), 0.1, "float32"))
        with pytest.raises(InputError, match=r"NaN or infinite numbers in 2 of 4 vectors; try dtype='float32'"):
            fitted([[1, 2], [float("nan"), 1], [float("inf"), 3], [4, 5]])

    def test_whitening_without_shrinkage_needs_texts(self):
        with pytest.raises(InputError, match=r"3 texts vary in 2 of 5 directions, .* scales 5; give more texts, a shr"):
            fit_whitening(noise(3, 5), shrinkage=0)
        assert fit_whitening(noise(3, 5), shrinkage=0, size=2).matrix.shape == (5, 2)

    def test_a_damaged_head(self):
        with pytest.raises(InputError, match="language model head holds numbers that are not finite"):
            fit_filter(torch.tensor([[1.0, float("nan")]]))

    def test_kinds(self):
        with pytest.raises(RecipeError, match="kind='zca' is unknown; legal: centre, whiten, pca, filter"):
            check_choices("zca", METHODS["va"], 8, None, 0.01)
        with pytest.raises(RecipeError, match=r"kind='filter' is not fitted on texts; legal: centre, whiten, pca$"):
            fit("filter", CROSS)

    @pytest.mark.parametrize("method", METHODS)
    def test_the_filter_is_for_the_residual_stream(self, method):
        if is_of_the_stream(METHODS[method]):
            check_choices("filter", METHODS[method], 8, 4, 0.01)
        else:
            why = {"va": "gives raw values", "wva": "gives raw values", "joined": "joins vectors of several spaces"}
            with pytest.raises(RecipeError, match=f"stream, and method '{method}' {why[method]}; take an aligned or"):
                check_choices("filter", METHODS[method], 8, 4, 0.01)

    def test_choices_are_checked_before_any_work(self):
        with pytest.raises(RecipeError, match="size=9 has to be a whole number from 1 to 8"):
            check_choices("pca", METHODS["va"], 8, 9, 0.01)
        with pytest.raises(RecipeError, match="shrinkage=2 has to be a number from 0 to 1"):
            check_choices("whiten", METHODS["va"], 8, 4, 2)


# The module


def record(recipe: Recipe, size: int, width: int = 16) -> CalibrationRecord:
    return CalibrationRecord(kind="whiten", recipe=recipe, width=width, size=size, shrinkage=0.01, texts=9, corpus="ab")


def calibrated(folder: Path, size: int = 5, **options: object) -> ValueEncoder:
    """VA of the tiny checkpoint, 16 wide, whitened."""
    model = load(folder, "va", **options)
    vectors = load(folder, "va", normalize=False, **options).encode(some_texts(40))
    module = Calibration(fit("whiten", vectors, size=size), record(model.recipe, size))
    return ValueEncoder(modules=[model.reader, module, Normalize()])


class TestModule:
    def test_is_the_formula(self, folder):
        model = calibrated(folder)
        x = load(folder, "va", normalize=False).encode(["a cat", "sun and rain"]).astype("float64")
        projection = fit("whiten", load(folder, "va", normalize=False).encode(some_texts(40)), size=5)
        y = (x / np.linalg.norm(x, axis=1, keepdims=True) - projection.mean.numpy()) @ projection.matrix.numpy()
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        assert abs(model.encode(["a cat", "sun and rain"]) - y).max() < 1e-5
        assert model.get_embedding_dimension() == 5
        assert model.encode([]).shape == (0, 5)

    def test_a_large_mean_costs_little_precision(self):
        # A common part a hundred times the rest; a bias would have to cancel it after the product.
        x = torch.tensor(noise(512, 256) + 100 * noise(1, 256, seed=1), dtype=torch.float32)
        mean, matrix = fit("whiten", x)
        exact = (torch.nn.functional.normalize(x.double(), dim=1) - mean) @ matrix
        found = project(x, mean.float(), matrix.float())
        with_bias = torch.nn.functional.normalize(x, dim=1) @ matrix.float() - (mean @ matrix).float()
        error, other = (float((way - exact).norm() / exact.norm()) for way in (found, with_bias))
        assert error < 1e-4, error
        assert error < other / 3, (error, other)

    def test_long_vectors_count_no_more_than_others(self):
        x = noise(30, 4)
        y = x * np.exp(noise(30, 1, seed=1) * 4)
        for kind in ("centre", "whiten", "pca"):
            assert close(fit(kind, y).mean, fit(kind, x).mean.numpy())
            assert close(fit(kind, y).matrix, fit(kind, x).matrix.numpy())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_is_float32_whatever_the_decoder_is_in(self, folder, dtype, tmp_path):
        model = calibrated(folder, dtype=dtype)
        model.save_pretrained(str(tmp_path))
        again = load(tmp_path, dtype=dtype)
        for made in (model, again):
            module = find_calibration(made)
            assert module is not None
            assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
            assert made.reader.model.dtype == getattr(torch, dtype)
        assert_saved_alike(model, again, some_texts(6), tolerance=WHITENED)

    def test_moves_between_devices_without_changing_its_numbers(self, folder):
        module = find_calibration(calibrated(folder))
        assert module is not None
        before = module.matrix.clone()
        module.to("meta", torch.float16)
        assert (module.matrix.device.type, module.matrix.dtype) == ("meta", torch.float32)
        assert before.dtype == torch.float32

    def test_computes_in_float32_under_autocast(self, folder):
        model = calibrated(folder)
        x = load(folder, "va", normalize=False).encode(some_texts(6), convert_to_tensor=True)
        module = find_calibration(model)
        assert module is not None
        plain = module({"sentence_embedding": x})["sentence_embedding"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module({"sentence_embedding": x})["sentence_embedding"], plain)

    def test_a_plain_sentence_transformer_gives_the_same_vectors(self, folder, tmp_path):
        model = calibrated(folder)
        model.save_pretrained(str(tmp_path))
        plain = SentenceTransformer(str(tmp_path), trust_remote_code=True)
        assert [type(module).__name__ for module in plain] == ["ValueTransformer", "Calibration", "Normalize"]
        assert plain.get_embedding_dimension() == 5
        assert_same_vectors(plain, model, some_texts(6), tolerance=WHITENED)
        assert_same_vectors(plain, model, ["a cat"], tolerance=WHITENED)

    def test_a_saved_one_is_data_only(self, folder, tmp_path):
        calibrated(folder).save_pretrained(str(tmp_path))
        held = {path.name for path in (tmp_path / "1_Calibration").iterdir()}
        assert held == {"config.json", "model.safetensors"}
        assert {module["type"] for module in json.loads((tmp_path / "modules.json").read_text())} >= {CALIBRATION_TYPE}
        module = find_calibration(load(tmp_path))
        assert module is not None
        with pytest.raises(RecipeError, match="safe_serialization=False would write pickled weights"):
            module.save(str(tmp_path), safe_serialization=False)

    def test_what_it_is_can_be_read(self, folder, tmp_path):
        model = calibrated(folder)
        assert "(1): Calibration(whiten, shrinkage 0.01, 16 numbers to 5, fitted on 9 texts)" in repr(model)
        model.save_pretrained(str(tmp_path))
        card = (tmp_path / "README.md").read_text()
        assert "| calibrated | whiten, shrinkage 0.01, 16 numbers to 5, fitted on 9 texts |" in card
        assert "It maps a text to 5 numbers." in card
        found = info(tmp_path)
        assert (found.width, found.calibration) == (5, "whiten, shrinkage 0.01, 16 numbers to 5, fitted on 9 texts")
        assert (info(folder, "va").width, info(folder, "va").calibration) == (16, None)
        load(folder, "va").save_pretrained(str(tmp_path / "plain"))
        assert "| calibrated | no |" in (tmp_path / "plain" / "README.md").read_text()


class TestRecord:
    def test_round_trip(self):
        made = record(METHODS["aligned_wva"], 4)
        assert CalibrationRecord.from_dict(json.loads(json.dumps(made.to_dict()))) == made

    def test_unknown_and_missing_keys(self):
        with pytest.raises(RecipeError, match=r"a calibration records corpus, kind, .*missing: \['color', 'kind'\]"):
            CalibrationRecord.from_dict(
                {"color": 1, **{k: 1 for k in record(METHODS["va"], 4).to_dict() if k != "kind"}}
            )

    def test_every_kind_has_words(self):
        made = CalibrationRecord(kind=CALIBRATIONS[-1], recipe=METHODS["aligned_va"], width=8, size=4)
        assert str(made) == "filter, 8 numbers to 4, from the language model head"


class TestLoading:
    @pytest.fixture
    def saved(self, folder, tmp_path):
        calibrated(folder).save_pretrained(str(tmp_path / "saved"))
        return tmp_path / "saved"

    def test_another_recipe_is_refused_by_name(self, saved):
        start = re.escape(f"model {str(saved)!r} was calibrated (whiten) for va with ")
        end = "Load it without method, layers, template and cleaning, or load 'tiny' and calibrate that"
        for wish, difference in (
            ({"method": "wva"}, r"weights 'mean', asked for is 'last'; template .*means in one word.*\. "),
            ({"layers": [0]}, r"layers \[3\], asked for is \[0\]\. "),
            ({"template": "{text}!"}, r"template \['{text}'\], asked for is \['{text}!'\]\. "),
            ({"cleaning": "sentence"}, r"cleaning 'none', asked for is 'sentence'\. "),
        ):
            with pytest.raises(RecipeError, match=f"^{start}{difference}{end}$"):
                load(saved, **wish)
            with pytest.raises(RecipeError, match=f"^{start}{difference}{end}$"):
                info(saved, **wish)

    def test_is_refused_before_weights_are_read(self, saved):
        (saved / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(RecipeError, match="was calibrated"):
            load(saved, "wva")

    def test_the_same_recipe_in_other_words_is_taken(self, saved, folder):
        expected = load(saved)
        layers = load(folder, "va").recipe.layers
        same = Recipe(signal="value", weights="mean", method="mine")
        for wish in ({"method": "va"}, {"method": "va", "layers": list(layers)}, {"method": same}, {"template": None}):
            assert_same_vectors(load(saved, **wish), expected, ["a cat"], tolerance=WHITENED)

    def test_normalisation_can_be_taken_off(self, saved):
        raw = load(saved, normalize=False).encode(["a cat"])
        assert np.allclose(raw / np.linalg.norm(raw), load(saved).encode(["a cat"]), atol=1e-6)
        assert abs(np.linalg.norm(raw) - 1) > 0.01

    def test_a_recipe_changed_behind_it_is_noticed(self, saved):
        path = saved / "valuembed_config.json"
        config = json.loads(path.read_text())
        config["recipe"]["layers"] = [1]
        path.write_text(json.dumps(config))
        with pytest.raises(RecipeError, match=r"was calibrated .* layers \[3\], asked for is \[1\]"):
            load(saved)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: (path / "model.safetensors").unlink(), "its calibration 1_Calibration has no model.safetens"),
            (lambda path: (path / "model.safetensors").write_bytes(b"x"), "its calibration 1_Calibration is damaged"),
            (lambda path: (path / "config.json").unlink(), "its calibration 1_Calibration is missing"),
            (lambda path: (path / "config.json").write_text("{"), "its calibration is damaged"),
            (lambda path: (path / "config.json").write_text("{}"), "its calibration is damaged: a calibration records"),
            (shutil.rmtree, "its calibration 1_Calibration is missing"),
        ],
    )
    def test_damage_is_named(self, saved, damage, message):
        damage(saved / "1_Calibration")
        with pytest.raises(CheckpointError, match=re.escape(f"model {str(saved)!r}: {message}")):
            load(saved)

    def test_numbers_of_another_shape_are_refused(self, saved):
        path = saved / "1_Calibration" / "model.safetensors"
        held = load_file(path)
        save_file({**held, "matrix": held["matrix"][:, :4].contiguous()}, path)
        with pytest.raises(CheckpointError, match=r"it holds .*'matrix': \[16, 4\].*its record says .*\[16, 5\]"):
            load(saved)

    def test_modules_that_cannot_be_read_are_damage(self, saved):
        (saved / "modules.json").write_text("[{}]")
        with pytest.raises(CheckpointError, match=r"modules\.json .*is damaged: KeyError: 'type'"):
            load(saved)
