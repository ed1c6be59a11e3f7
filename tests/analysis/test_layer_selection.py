"""Layers are chosen on one half by score, then cost, and written where ``load`` finds them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from saved_models import assert_saved_alike
from some_texts import some_texts
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import valuembed
from valuembed.analysis import layer_selection
from valuembed.analysis.calibration_fit import calibrate
from valuembed.analysis.held_out import Candidate
from valuembed.analysis.layer_selection import select_layers
from valuembed.analysis.objectives import CHOSEN_ON, HELD_OUT
from valuembed.errors import InputError, OutputError, ReadingError
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.layers import PRESETS, LayerPreset
from valuembed.recipes.methods import METHODS, read_recipe
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = some_texts(80)


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    rows = [
        {"sentence1": TEXTS[i], "sentence2": TEXTS[40 + i], "score": (7 * i) % 11, "split": "dev"} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "docs.txt"
    path.write_text("".join(" ".join(TEXTS[i : i + 8]) + "\n" for i in range(0, 80, 8)))
    return path


class Planted:
    """Evidence whose scores are given by a table for each half; without a second one both halves agree."""

    metrics = ("score",)

    def __init__(self, table, held_out=None, default=0.0):
        self.tables, self.default = {CHOSEN_ON: table, HELD_OUT: table if held_out is None else held_out}, default
        self.data = {"file": "f", "split": None, "unit": "pairs", "chosen_on": 1, "held_out": 1, "halves": "planted"}

    def __call__(self, readouts, groups, file, progress):
        return self

    def scores(self, sets, half, bar=None):
        return np.array([[self.tables[half].get(layers, self.default)] for layers in sets])


@pytest.fixture
def planted(monkeypatch, folder, dev):
    def choose(table, method="va", model=folder, held_out=None, **more):
        monkeypatch.setattr(layer_selection, "LabelledPairs", Planted(table, held_out))
        return select_layers(model, method, dev=dev, **more)

    return choose


def layers_of(selection):
    return {one.name: one.layers for one in selection.candidates}


class TestChoice:
    def test_windows_and_greedy_sets(self, planted):
        found = planted({(1,): 5, (3,): 4, (1, 3): 8, (1, 2): 7, (1, 2, 3): 8, (0, 1): 6})
        # Greedy: 1 (5), with 3 (8); 1, 2, 3 is no better, so it stops. Windows: 1-3 (8) is the best.
        assert layers_of(found) == {
            "best window": (1, 2, 3),
            "greedy set": (1, 3),
            "all layers": (0, 1, 2, 3),
            "second half": (2, 3),
            "last third": (3,),
        }
        # Equally good and equally deep: the greedy set has fewer layers.
        assert (found.chosen, found.recipe.layers) == ("greedy set", (1, 3))

    def test_greedy_may_miss_what_windows_find(self, planted):
        found = planted({(3,): 5, (0, 1): 9})
        assert layers_of(found)["greedy set"] == (3,)
        assert (found.chosen, found.recipe.layers) == ("best window", (0, 1))

    def test_a_set_that_holds_up_is_chosen_by_the_half_to_choose_on(self, planted):
        # Held out, layer 1 has 2; of the fixed sets the best is all layers, with 2: none is better.
        found = planted({(1,): 5}, held_out={(1,): 2, (0, 1, 2, 3): 2})
        assert found.candidates[0] == Candidate("best window", (1,), {"score": (5.0, 2.0)}, holds_up=True)
        assert found.recipe.layers == (1,)
        assert found.verdict == (
            "chosen: best window, layer 1; score 2.00 held out. It is the best on the half that was chosen on, and no "
            "set that was fixed beforehand is better held out. Compared: best window, greedy set, all layers, second "
            "half, last third."
        )

    def test_what_was_searched_and_is_worse_held_out_is_not_chosen(self, planted):
        # Greedy and window are 1 (5); held out it has 48.7, all layers 51.3, the second half 50, the span (3) 0.
        found = planted({(1,): 5}, held_out={(1,): 48.7, (0, 1, 2, 3): 51.3, (2, 3): 50})
        assert (found.chosen, found.recipe.layers) == ("all layers", (0, 1, 2, 3))
        assert {one.name: one.holds_up for one in found.candidates} == {
            "best window": False,
            "greedy set": False,
            "all layers": True,
            "second half": False,
            "last third": False,
        }
        assert found.verdict == (
            "chosen: all layers, layers 0-3; score 51.30 held out. The best on the half that was chosen on, best "
            "window (1, 5.00), does not hold up: 48.70 held out, against 51.30 of all layers. No set that was searched "
            "for holds up. Compared: best window, greedy set, all layers, second half, last third."
        )
        assert found.to_dict()["reason"] == found.reason
        assert found.reason in found.to_markdown()

    def test_of_two_searched_sets_the_one_that_holds_up(self, planted):
        # The window 0-1 (9) fails held out, where all layers have 3; the greedy set 3 (5) has 4.
        found = planted({(3,): 5, (0, 1): 9}, held_out={(0, 1): 1, (3,): 4, (0, 1, 2, 3): 3})
        assert found.chosen == "greedy set"
        assert "best window (0-1, 9.00), does not hold up: 1.00 held out, against 4.00 of last third. Comp" in (
            found.reason
        )

    def test_a_hundredth_held_out_is_no_difference(self, planted):
        assert planted({(1,): 5}, held_out={(1,): 8, (0, 1, 2, 3): 8.01}).recipe.layers == (1,)
        assert planted({(1,): 5}, held_out={(1,): 8, (0, 1, 2, 3): 8.02}).recipe.layers == (0, 1, 2, 3)

    def test_scores_that_are_not_defined_held_out(self, planted):
        found = planted({(1,): 5}, held_out={(2, 3): np.nan})
        assert found.rows()[4][-1] == "-"
        assert "-: not defined, for all similarities are equal" in found.notes()
        everything = {tuple(range(i, j)): np.nan for i in range(4) for j in range(i + 1, 5)}
        with pytest.raises(ReadingError, match=r"^f: score is not defined for any set of layers on the half held out"):
            planted({(1,): 5}, held_out=everything)

    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            # Within a hundredth the one that ends lower wins, then the one of fewer layers.
            ({(2, 3): 8.009, (0, 1): 8.0, (1,): 8.0}, (1,)),
            ({(2, 3): 8.02, (0, 1): 8.0, (1,): 8.0}, (2, 3)),
            ({(0,): 8.0, (1,): 8.005, (3,): 8.009}, (0,)),
        ],
    )
    def test_of_equally_good_sets_the_cheapest(self, planted, scores, expected):
        assert planted(scores).recipe.layers == expected

    def test_a_layer_that_helps_by_less_than_the_margin_is_not_added(self, planted):
        assert layers_of(planted({(2,): 5, (0, 2): 5.01}))["greedy set"] == (2,)
        assert layers_of(planted({(2,): 5, (0, 2): 5.02}))["greedy set"] == (0, 2)

    def test_a_score_that_is_not_defined_is_the_worst(self, planted):
        everything = {tuple(range(i, j)): np.nan for i in range(4) for j in range(i + 1, 5)}
        assert planted({**everything, (0, 2): np.nan, (2,): -3.0}).recipe.layers == (2,)

    def test_without_any_score_nothing_is_chosen(self, planted):
        everything = {tuple(range(i, j)): np.nan for i in range(4) for j in range(i + 1, 5)}
        with pytest.raises(ReadingError, match=r"^va on f: score is not defined for any set of layers, for all sim"):
            planted(everything)

    def test_named_sets_can_win(self, planted, monkeypatch):
        preset = LayerPreset(layers=(0, 3), match={"model_type": "qwen3"})
        monkeypatch.setitem(PRESETS, "made-up", preset)
        found = planted({(2,): 1, (0, 3): 2})
        assert layers_of(found)["preset made-up"] == (0, 3)
        assert found.chosen == "preset made-up"

    def test_hidden_states_have_the_final_norm_beside_their_layers(self, planted):
        found = planted({(-1,): 3, (1, 2): 2}, "hidden_mean")
        assert layers_of(found) == {
            "best window": (1, 2),
            "greedy set": (0,),
            "all layers": (0, 1, 2, 3),
            "second half": (2, 3),
            "final norm": (),
        }
        assert found.recipe == METHODS["hidden_mean"]
        assert found.verdict == f"chosen: final norm, after the final norm; score 3.00 held out. {found.reason}"

    def test_a_folder_that_was_saved_cut(self, planted, folder, tmp_path):
        valuembed.load(folder, "va", layers=[0, 1, 2]).save_pretrained(str(tmp_path / "cut"))
        found = planted({(0, 1, 2): 1}, model=tmp_path / "cut")
        assert layers_of(found) == {"best window": (0, 1, 2), "greedy set": (0,)}
        reason = "layer 3 is not in this folder, which was saved without them"
        assert found.left_out == dict.fromkeys(("all layers", "second half", "last third"), reason)
        assert "no set that was fixed beforehand can be read here. Compared: best window, greedy set." in found.reason
        assert f"second half: left out, {reason}" in found.to_markdown()

    def test_layers_of_unequal_width_are_searched_apart(self, planted, tmp_path):
        # Full layers (1 and 3) have heads twice as wide as sliding ones (0 and 2).
        config = CONFIG_MAPPING["gemma4_text"](
            vocab_size=512,
            vocab_size_per_layer_input=512,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            global_head_dim=16,
            hidden_size_per_layer_input=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=0,
        )
        mixed = tiny_checkpoint(tmp_path / "mixed", "qwen3")
        AutoModelForCausalLM.from_config(config).save_pretrained(mixed)
        # 1 and 3 are neighbours among their like; 1 and 2 cannot be averaged, whatever they would score.
        found = planted({(1, 2): 9, (0,): 1, (1, 3): 8}, model=mixed)
        assert layers_of(found) == {"best window": (1, 3), "greedy set": (1, 3), "last third": (3,)}
        assert set(found.left_out) == {"all layers", "second half"}
        reason = "layers of unequal width cannot be averaged (16 wide: layers 0, 2; 32 wide: layers 1, 3)"
        assert found.left_out["all layers"].startswith(reason)


class TestData:
    def test_with_labels(self, folder, dev):
        found = select_layers(folder, "aligned_va", dev=f"sts:{dev}", template="{text}!")
        assert found.recipe.template == ("{text}!",)
        assert (found.data["file"], found.data["split"], found.data["unit"]) == ("dev.jsonl", "dev", "pairs")
        assert found.data["chosen_on"] == found.data["held_out"] == 20
        on_half = {one.name: one.scores["Spearman"][CHOSEN_ON] for one in found.candidates}
        held_up = [on_half[one.name] for one in found.candidates if one.holds_up]
        assert on_half[found.chosen] >= max(held_up) - layer_selection.MARGIN
        assert on_half["best window"] >= max(on_half["all layers"], on_half["second half"]) - layer_selection.MARGIN

    def test_without_labels(self, folder, corpus):
        # The tiny model's tokens are few, so that segments of 128 need long documents.
        found = select_layers(folder, "wva", corpus=corpus, segments=24)
        assert found.data["unit"] == "segments"
        assert found.data["chosen_on"] + found.data["held_out"] == 24
        assert list(found.candidates[0].scores) == ["MRR", "accuracy@1"]
        assert len(found.rows()[0]) == 6

    def test_says_the_same_twice(self, folder, dev):
        assert select_layers(folder, "va", dev=dev) == select_layers(folder, "va", dev=dev)

    def test_plain_data_is_json(self, folder, dev):
        found = select_layers(folder, "va", dev=dev)
        assert json.loads(json.dumps(found.to_dict()))["recipe"] == json.loads(json.dumps(found.recipe.to_dict()))
        assert f"| **{found.chosen}** | **" in found.to_markdown()


class TestOutput:
    def test_a_recipe_file(self, planted, folder, tmp_path):
        path = tmp_path / "made" / "va.json"
        found = planted({(1, 2): 5}, output=path)
        assert read_recipe(path) == found.recipe
        assert valuembed.load(folder, str(path)).recipe.layers == (1, 2)
        notes = json.loads(path.read_text())
        assert (notes["chosen"], notes["data"]["halves"]) == ("best window", "planted")
        assert notes["reason"] == found.reason
        origin = {"name": folder.name, "revision": None}
        assert notes["details"]["origin"].items() >= origin.items()
        assert (notes["details"]["dtype"], "torch" in notes["details"]["versions"]) == ("float32", True)
        assert notes["candidates"][0]["scores"] == {"score": [5.0, 5.0]}
        assert list(path.parent.iterdir()) == [path]

    def test_a_model_folder(self, planted, folder, tmp_path):
        planted({(1, 2): 5}, output=tmp_path / "chosen")
        encoder = valuembed.load(tmp_path / "chosen")
        assert encoder.recipe.layers == (1, 2)
        assert encoder.reader.model.config.num_hidden_layers == 3
        assert_saved_alike(valuembed.load(folder, "va", layers=[1, 2]), encoder, TEXTS[:5])
        assert json.loads((tmp_path / "chosen" / layer_selection.NOTES_FILE).read_text())["chosen"] == "best window"
        assert not list(tmp_path.glob(".chosen*"))

    def test_overwrites_when_asked(self, planted, tmp_path):
        for output in (tmp_path / "va.json", tmp_path / "folder"):
            planted({(1,): 5}, output=output)
            with pytest.raises(OutputError, match=r"output .*(va\.json|folder) exists.*overwrite it"):
                planted({(2,): 5}, output=output)
            planted({(2,): 5}, output=output, overwrite=True)
        assert read_recipe(tmp_path / "va.json").layers == valuembed.load(tmp_path / "folder").recipe.layers == (2,)

    def test_what_is_no_model_is_never_replaced(self, planted, tmp_path):
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "one.txt").write_text("dear")
        with pytest.raises(OutputError, match="letters holds no model of valuembed, so it is not overwritten"):
            planted({}, output=tmp_path / "letters", overwrite=True)
        with pytest.raises(OutputError, match=r"one\.txt is a file; name a folder for the model"):
            planted({}, output=tmp_path / "letters" / "one.txt", overwrite=True)
        (tmp_path / "x.json").mkdir()
        with pytest.raises(OutputError, match=r"x\.json is a folder; name a recipe file"):
            planted({}, output=tmp_path / "x.json", overwrite=True)

    def test_a_place_that_cannot_be_written(self, planted, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(OutputError, match=r"cannot write .*va\.json: "),
            pytest.warns(
                UserWarning, match=r"the choice was made, and could not be written:\n(.*\n)+chosen: best window"
            ),
        ):
            planted({(1, 2): 5}, output=tmp_path / "file" / "va.json")

    def test_a_folder_for_a_calibrated_model(self, folder, dev, tmp_path, monkeypatch):
        calibrated = calibrate(valuembed.load(folder, "va"), TEXTS, kind="centre", progress=False)
        calibrated.save(str(tmp_path / "centred"))
        with monkeypatch.context() as patch:
            patch.setattr(MultiReadout, "load", None)  # known before any weights are read
            with pytest.raises(
                OutputError,
                match=r"chosen is a folder for a model, and model '.*centred' was calibrated \(centre\) for the "
                rf"layers that it has; choose layers on its source, '{folder.name}', and calibrate",
            ):
                select_layers(tmp_path / "centred", dev=dev, output=tmp_path / "chosen")
        select_layers(tmp_path / "centred", dev=dev, output=tmp_path / "va.json")
        assert valuembed.load(folder, str(tmp_path / "va.json")).recipe.signal == "value"


class TestErrors:
    @pytest.mark.parametrize("given", [{}, {"dev": "sts:a.jsonl", "corpus": "b.txt"}])
    def test_one_kind_of_data(self, folder, given):
        with pytest.raises(InputError, match=r"give one of dev \(sts:FILE, with labels\) and corpus \(FILE of"):
            select_layers(folder, **given)

    def test_test_data_is_refused(self, folder, dev):
        named = dev.rename(dev.with_name("sts.test.jsonl"))
        with pytest.raises(InputError, match="layers are never chosen on test data"):
            select_layers(folder, dev=named)

    def test_documents_that_are_too_short(self, folder, tmp_path):
        (tmp_path / "short.txt").write_text("One.\nTwo.\n")
        with pytest.raises(InputError, match="none of 2 documents has two segments of 128 tokens"):
            select_layers(folder, "va", corpus=tmp_path / "short.txt")

    def test_one_document(self, folder, corpus):
        corpus.write_text(corpus.read_text().replace("\n", " "))
        with pytest.raises(InputError, match="segments of one document cannot be halved"):
            select_layers(folder, "va", corpus=corpus)

    def test_a_bad_output_is_known_before_the_model_is_read(self, tmp_path, dev):
        (tmp_path / "va.json").write_text("{}")
        with pytest.raises(OutputError, match=r"va\.json exists; choose another name or overwrite it"):
            select_layers("no/such-model", dev=dev, output=tmp_path / "va.json")


def test_a_hybrid_offers_the_layers_that_have_values(tmp_path, dev):
    hybrid = tiny_checkpoint(tmp_path / "hybrid", "qwen3_next")
    found = select_layers(hybrid, "va", dev=dev)
    assert layers_of(found)["all layers"] == (1, 3)
