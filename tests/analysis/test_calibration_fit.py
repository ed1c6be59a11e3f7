"""Calibrating a model: which texts, which head, and that the model made is what the formula says."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import WHITENED, assert_same_vectors, assert_saved_alike
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout
from some_texts import some_texts
from watching import fake_hub, watch_reads

from valuembed.analysis.calibration_fit import calibrate, fit_calibrations, load_head, sample_texts
from valuembed.backbone.checkpoints.config import read_config
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.checkpoints.weight_files import read_head
from valuembed.errors import CheckpointError, InputError, RecipeError, TruncationWarning
from valuembed.models.calibration import CALIBRATIONS
from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.models.multi_readout import MultiReadout
from valuembed.models.saving import save_model
from valuembed.testing import tiny_causal_lm, tiny_checkpoint

pytestmark = pytest.mark.slow

CORPUS = list(dict.fromkeys(some_texts(60)))
FITTED = ("centre", "whiten", "pca")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def raw(folder: Path, method: str, texts: list[str], **options: object) -> np.ndarray:
    """Unit vectors as the reader gives them, in float64."""
    return unit(load(folder, method, normalize=False, **options).encode(texts).astype("float64"))


class TestSample:
    def test_neither_order_nor_repetition_matters(self):
        mixed = CORPUS * 3
        random.Random(0).shuffle(mixed)
        assert sample_texts(mixed, 20) == sample_texts(iter(CORPUS), 20)
        assert sample_texts(mixed).texts == sample_texts(CORPUS).texts
        assert sorted(sample_texts(CORPUS).texts) == sorted(CORPUS)

    def test_a_larger_sample_goes_on_where_a_smaller_one_ends(self):
        whole = sample_texts(CORPUS).texts
        for count in (2, 7, 30):
            assert sample_texts(CORPUS, count).texts == whole[:count]

    def test_every_text_has_the_same_chance(self):
        # 200 of 1,000 numbered texts: the mean of their numbers is 499.5, and its standard error 288.7/sqrt(200) = 20.
        drawn = [int(text) for text in sample_texts((str(number) for number in range(1000)), 200).texts]
        assert len(set(drawn)) == 200
        assert abs(np.mean(drawn) - 499.5) < 80

    def test_holds_no_more_than_it_draws(self):
        alive = most = 0

        class Text(str):
            def __new__(cls, text: str) -> Text:
                nonlocal alive, most
                alive += 1
                most = max(most, alive)
                return super().__new__(cls, text)

            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        sample_texts((Text(number) for number in range(5000)), 10)
        assert most < 20

    def test_the_digest_is_of_the_texts(self):
        assert re.fullmatch("[0-9a-f]{16}", sample_texts(CORPUS).digest)
        assert sample_texts(CORPUS).digest == sample_texts(CORPUS[::-1]).digest
        assert sample_texts(CORPUS).digest != sample_texts(CORPUS[1:]).digest
        assert sample_texts(["ab", "c"]).digest != sample_texts(["a", "bc"]).digest

    def test_blank_texts_do_not_count(self):
        assert sample_texts(["", " ", "\n", "a", "b"]).texts == sample_texts(["a", "b"]).texts

    @pytest.mark.parametrize(("texts", "held"), [([], 0), (["a", "a", " "], 1)])
    def test_too_few(self, texts, held):
        with pytest.raises(InputError, match=f"2 different texts or more; the corpus holds {held}"):
            sample_texts(texts)

    def test_bad_input(self):
        with pytest.raises(InputError, match="Table where texts are expected: a table has several columns"):
            sample_texts(pa.table({"text": ["a", "b"]}))
        assert sample_texts(pa.array(["a", "b"])) == sample_texts({"b", "a"}) == sample_texts(iter(["a", "b"]))
        with pytest.raises(InputError, match="row 1 of the corpus cannot be embedded: it is not a string but int"):
            sample_texts(["a", 3])  # type: ignore[list-item]
        with pytest.raises(InputError, match="a corpus is a list of texts, not one text"):
            sample_texts("a text")
        for count in (1, 0, 2.5, True):
            with pytest.raises(RecipeError, match=f"max_texts={count} has to be a whole number of at least 2"):
                sample_texts(CORPUS, count)  # type: ignore[arg-type]


class TestCalibrate:
    @pytest.mark.parametrize("kind", FITTED)
    @pytest.mark.parametrize("method", ["va", "aligned_wva"])
    def test_is_the_formula_on_the_readers_vectors(self, folder, kind, method):
        fitted, x = raw(folder, method, CORPUS), raw(folder, method, ["a cat", "the sun rose"])
        mean = fitted.mean(axis=0)
        if kind == "centre":
            y = x - mean
        else:
            variances, directions = np.linalg.eigh(np.cov(fitted.T, bias=True))
            if kind == "whiten":
                directions = directions / np.sqrt(0.9 * variances + 0.1 * variances.mean())
            y = (x - mean) @ directions
        found = calibrate(load(folder, method), CORPUS, kind=kind, shrinkage=0.1).encode(["a cat", "the sun rose"])
        # Directions are determined up to their signs, cosines are not.
        assert abs(found @ found.T - unit(y) @ unit(y).T).max() < 1e-4

    def test_whitened_texts_are_white(self, folder):
        model = calibrate(load(folder, "va", normalize=False), CORPUS, shrinkage=0, size=6)
        white = model.encode(CORPUS).astype("float64")
        assert white.shape == (len(CORPUS), 6)
        assert abs(white.mean(axis=0)).max() < 1e-4
        assert abs(np.cov(white.T, bias=True) - np.eye(6)).max() < 1e-3

    def test_the_filter_is_a_projection_on_the_middle_of_the_head(self, folder):
        head = load_head(folder)
        directions = np.linalg.svd(head.double().numpy())[2].T[:, 10:22]
        y = unit(raw(folder, "aligned_va", CORPUS) @ directions)
        found = calibrate(load(folder, "aligned_va"), kind="filter", size=12, head=head).encode(CORPUS)
        assert abs(found @ found.T - y @ y.T).max() < 1e-5

    def test_what_is_recorded(self, folder):
        model = calibrate(load(folder, "va"), CORPUS * 2, size=3, max_texts=40)
        record = model[1].record
        assert (record.kind, record.width, record.size, record.shrinkage, record.texts) == ("whiten", 16, 3, 0.5, 40)
        assert record.corpus == sample_texts(CORPUS, 40).digest
        assert record.recipe == model.recipe == load(folder, "va").recipe
        for kind in ("centre", "pca"):
            assert calibrate(load(folder, "va"), CORPUS, kind=kind)[1].record.shrinkage is None
        record = calibrate(load(folder), kind="filter", head=load_head(folder))[1].record
        assert (record.shrinkage, record.texts, record.corpus) == (None, 0, None)

    @pytest.mark.parametrize("kind", CALIBRATIONS)
    def test_saves_and_loads_without_a_difference(self, folder, kind, tmp_path):
        head = load_head(folder) if kind == "filter" else None
        model = calibrate(load(folder), CORPUS, kind=kind, size=7, head=head)
        save_model(model, tmp_path / "saved")
        texts = some_texts(6)
        assert_saved_alike(model, load(tmp_path / "saved"), texts, tolerance=WHITENED)
        plain = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
        assert_same_vectors(plain, model, texts, tolerance=WHITENED)

    def test_the_model_given_stays_as_it_is(self, folder):
        model = load(folder, "va")
        before = model.encode(CORPUS[:5])
        made = calibrate(model, CORPUS, size=4)
        assert made.reader is model.reader
        assert np.array_equal(model.encode(CORPUS[:5]), before)
        assert [type(module).__name__ for module in made] == ["ValueTransformer", "Calibration", "Normalize"]

    def test_takes_the_place_of_an_earlier_one(self, folder):
        model = load(folder, "va")
        once = calibrate(model, CORPUS, size=4)
        again = calibrate(calibrate(model, CORPUS, kind="centre"), CORPUS, size=4)
        assert len(again) == 3
        assert_same_vectors(again, once, CORPUS[:5], tolerance=WHITENED)

    def test_without_normalisation_there_is_none_after_it(self, folder):
        made = calibrate(load(folder, "va", normalize=False), CORPUS)
        assert [type(module).__name__ for module in made] == ["ValueTransformer", "Calibration"]

    def test_instructions_travel_and_the_default_one_is_fitted_with(self, folder):
        model = load(folder, "va", template="{prompt}{text}", prompts={"query": "find: ", "topic": "about: "})
        model.default_prompt_name = "topic"
        made = calibrate(model, CORPUS, kind="centre")
        assert (made.prompts["query"], made.default_prompt_name) == ("find: ", "topic")
        with_prompt = load(folder, "va", template="{prompt}{text}", normalize=False).encode(CORPUS, prompt="about: ")
        assert np.allclose(made[1].mean.numpy(), unit(with_prompt).mean(axis=0), atol=1e-6)

    def test_a_card_of_ones_own_is_kept(self, folder, tmp_path):
        load(folder, "va").save_pretrained(str(tmp_path / "a"))
        (tmp_path / "a" / "README.md").write_text("by hand")
        save_model(calibrate(load(tmp_path / "a"), CORPUS), tmp_path / "b")
        assert (tmp_path / "b" / "README.md").read_text() == "by hand"

    def test_texts_that_are_cut_are_told(self, folder):
        with pytest.warns(TruncationWarning, match=r"of 60 texts were cut to fit max_tokens=12"):
            calibrate(load(folder, "va", max_tokens=12), CORPUS)

    def test_an_unfit_model_is_refused(self, folder):
        model = load(folder, "va")
        longer = ValueEncoder(modules=[model.reader, Dropout(0.1)])
        with pytest.raises(RecipeError, match="Dropout after the reader takes its vectors as they are; calibrate with"):
            calibrate(longer, CORPUS)

    def test_bad_choices_are_refused_before_a_text_is_read(self, folder):
        def never() -> Iterator[str]:
            raise AssertionError("read")
            yield ""

        model = load(folder, "va")
        for wrong, message in (
            ({"kind": "svd"}, "kind='svd' is unknown; legal: centre, whiten, pca, filter"),
            ({"size": 17}, "size=17 has to be a whole number from 1 to 16, the width of the vectors"),
            ({"shrinkage": 2}, "shrinkage=2 has to be a number from 0 to 1"),
            ({"kind": "filter"}, "method 'va' gives raw values; take an aligned"),
        ):
            with pytest.raises(RecipeError, match=re.escape(message)):
                calibrate(model, never(), **wrong)

    def test_whitening_without_shrinkage_needs_more_texts_than_width(self, folder):
        with pytest.raises(InputError, match="10 texts vary in 9 of 16 directions"):
            calibrate(load(folder, "va"), CORPUS[:10], shrinkage=0)

    def test_texts_without_a_difference(self, folder):
        with pytest.raises(InputError, match="all 2 vectors are the same, and nothing can be fitted on them"):
            calibrate(load(folder, "va", cleaning="sentence"), ["a cat", "a cat."])


class TestSeveral:
    def test_each_is_what_it_is_alone(self, folder):
        methods = {"a": "va", "b": "aligned_va", "c": "wva"}
        readouts = MultiReadout.load(folder, methods)
        found = fit_calibrations(readouts, CORPUS)
        again = MultiReadout(readouts.reader, readouts.plans, found)
        vectors = MultiReadout(readouts.reader, readouts.plans, fit_calibrations(again, CORPUS)).encode(
            ["a cat", "rain"]
        )
        for name, method in methods.items():
            alone = calibrate(load(folder, method), CORPUS)
            assert found[name].record == alone[1].record
            assert abs(unit(vectors[name]) - alone.encode(["a cat", "rain"])).max() < 1e-5

    def test_one_that_cannot_be_calibrated_is_named_before_any_work(self, folder):
        with pytest.raises(RecipeError, match="method 'wva' gives raw values"):
            fit_calibrations(
                MultiReadout.load(folder, {"a": "aligned_va", "b": "wva"}), kind="filter", head=torch.eye(32)
            )


class TestHead:
    @pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2", "gpt_neox", "opt", "biogpt"])
    def test_is_what_the_model_computes_its_logits_with(self, family, tmp_path):
        stock = tiny_causal_lm(family).get_output_embeddings().weight
        head = load_head(tiny_checkpoint(tmp_path / "model", family))
        assert torch.equal(head, stock)

    def test_only_that_tensor_is_read_from_its_shard(self, tmp_path, monkeypatch):
        folder = tiny_checkpoint(tmp_path / "model", shards=5)
        checkpoint = locate(folder)
        config = read_config(checkpoint)
        reads = watch_reads(monkeypatch)
        assert read_head(checkpoint, config).shape[1] == 32
        assert reads.tensors == ["lm_head.weight"]
        assert len(set(reads.opened)) == 1

    def test_only_its_shard_is_fetched(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model", shards=5)
        with fake_hub("someone/tiny", folder) as hub:
            head = load_head("someone/tiny", cache_folder=str(tmp_path / "cache"))
        assert torch.equal(head, load_head(folder))
        assert len([name for name in hub.sent if name.endswith(".safetensors")]) == 1

    def test_an_image_text_model_says_of_itself_whether_it_is_tied(self, tmp_path):
        # mistral3 ties the whole model's head while its text part says otherwise.
        from image_text import FAMILIES, TEXT, VISION
        from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

        text, vision, whole = FAMILIES["mistral3"]
        for tied in (True, False):
            config = CONFIG_MAPPING["mistral3"](
                text_config={**TEXT, **text, "tie_word_embeddings": not tied},
                vision_config={**VISION, **vision},
                tie_word_embeddings=tied,
                **whole,
            )
            model = AutoModelForImageTextToText.from_config(config)
            model.save_pretrained(tmp_path / str(tied))
            assert torch.equal(load_head(tmp_path / str(tied)), model.get_output_embeddings().weight)
            assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    def test_a_saved_folder_without_one_names_its_source(self, folder, tmp_path):
        load(folder, "va").save_pretrained(str(tmp_path))
        message = "holds no weights of a language model head; a folder saved by this library has none, its source has: "
        with pytest.raises(CheckpointError, match=f"{message}the folder 'tiny', which this one was made from"):
            load_head(tmp_path)

    def test_a_saved_folder_with_tied_embeddings_has_one(self, sliding, tmp_path):
        load(sliding, "va").save_pretrained(str(tmp_path))
        assert torch.equal(load_head(tmp_path), load_head(sliding))

    def test_a_saved_folder_from_a_hub_leads_there(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model")
        with fake_hub("someone/tiny", folder):
            load("someone/tiny", "va", cache_folder=str(tmp_path / "cache")).save_pretrained(str(tmp_path / "saved"))
            head = load_head(tmp_path / "saved", cache_folder=str(tmp_path / "cache"))
        assert torch.equal(head, load_head(folder))

    def test_a_checkpoint_without_one(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model", lm_head=False)
        with pytest.raises(CheckpointError, match=re.escape(f"model {str(folder)!r} holds no weights of a language")):
            load_head(folder)

    def test_two_heads_are_one_too_many(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model")
        held = load_file(folder / "model.safetensors")
        save_file({**held, "other.lm_head.weight": held["lm_head.weight"].clone()}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"holds 2 weights of a language model head: .*lm_head.weight"):
            load_head(folder)

    def test_a_quantized_one(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model")
        held = load_file(folder / "model.safetensors")
        save_file({**held, "lm_head.weight": held["lm_head.weight"].to(torch.int8)}, folder / "model.safetensors")
        message = r"lm_head.weight is torch.int8 of shape \(\d+, 32\), which is quantized; name the model it was made"
        with pytest.raises(CheckpointError, match=message):
            load_head(folder)

    def test_damage_is_named(self, tmp_path):
        folder = tiny_checkpoint(tmp_path / "model", shards=2)
        shard = folder / "model-00001-of-00002.safetensors"
        other = folder / "model-00002-of-00002.safetensors"
        holds = shard if "lm_head.weight" in load_file(shard) else other
        holds.write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=f"{holds.name} is damaged: SafetensorError"):
            load_head(folder)
        holds.unlink()
        with pytest.raises(CheckpointError, match=f"weight file {holds.name} is missing"):
            load_head(folder)

    def test_the_bundled_models_own_is_found_by_itself(self):
        model = load("bundled", "aligned_va")
        made = calibrate(model, kind="filter", size=64)
        given = calibrate(model, kind="filter", size=64, head=load_head("bundled"))
        assert_same_vectors(made, given, ["a cat"], tolerance=WHITENED)
        assert made.encode(["a cat"]).shape == (1, 64)

    def test_that_of_a_folder_has_to_be_given(self, folder):
        with pytest.raises(RecipeError, match="the folder 'tiny' was, from which this model came; give head="):
            calibrate(load(folder), kind="filter")

    @pytest.mark.parametrize("shape", [(10, 31), (32,)])
    def test_that_of_another_model_is_refused(self, folder, shape):
        message = f"head has the shape {shape}, and vectors 32 wide need [vocabulary, 32]; take the head of the same"
        with pytest.raises(InputError, match=re.escape(message)):
            calibrate(load(folder), kind="filter", head=torch.ones(shape))


def test_an_adapter_counts(folder, tmp_path):
    pytest.importorskip("peft", reason="adapters need the extra 'train'")
    from peft import LoraConfig

    model = load(folder, "aligned_va")
    model.add_adapter(LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    made = calibrate(model, CORPUS, size=8)
    plain = calibrate(load(folder, "aligned_va"), CORPUS, size=8)
    assert abs(made[1].mean - plain[1].mean).max() > 1e-4
    save_model(made, tmp_path / "saved")
    assert_saved_alike(made, load(tmp_path / "saved"), CORPUS[:3], tolerance=WHITENED)
