"""Training from files to a saved model: what is changed and what is not, what is saved, what is refused."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved_models import assert_same_vectors, assert_saved_alike
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from training_runs import (
    GRADED,
    PAIRS,
    TEXTS,
    adapters_of,
    assert_same_adapters,
    difference,
    losses,
    other_texts,
    pairs_file,
    trained,
)

from valuembed.analysis.calibration_fit import calibrate
from valuembed.data.pairs import read_training_pairs
from valuembed.errors import InputError, MissingExtraError, OutputError, RecipeError
from valuembed.models.loading import load
from valuembed.recipes import METHODS, Recipe
from valuembed.training.finetune import Training, loss_figure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs_file(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def local(folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run on a folder of this machine."""
    return trained(folder, pairs, tmp_path_factory.mktemp("local") / "out", chart=True)


@pytest.fixture(scope="module")
def bundled(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run on the bundled model."""
    return trained("bundled", pairs, tmp_path_factory.mktemp("bundled") / "out")


class TestWeights:
    @pytest.mark.parametrize("source", ["folder", "bundled"])
    def test_of_the_model_stay_to_the_bit(self, source: str, request: pytest.FixtureRequest) -> None:
        made: Training = request.getfixturevalue({"folder": "local"}.get(source, source))
        before = load(request.getfixturevalue("folder") if source == "folder" else source, "va", dtype="float32")
        expected = dict(before.state_dict())
        # A map with an adapter keeps its own weight under another name.
        found = {name.replace(".base_layer.", "."): tensor for name, tensor in made.model.state_dict().items()}
        own = {name: tensor for name, tensor in found.items() if ".lora_" not in name}
        assert own.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in own.items())
        assert len(found) - len(own) == 2 * len(made.record["maps"])

    def test_of_adapters_alone_are_trained(self, local: Training) -> None:
        wanted = {name for name, weight in local.model.named_parameters() if weight.requires_grad}
        assert wanted == set(adapters_of(local))
        assert len(wanted) == 2 * len(local.record["maps"])
        # B starts as zeros: every adapter has moved.
        assert all(float(weight.abs().max()) > 0 for weight in adapters_of(local).values())

    def test_of_later_modules_stay(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        model = load(folder, "va")
        model.append(Dense(16, 5))
        model.save_pretrained(str(tmp_path / "longer"))
        made = trained(tmp_path / "longer", pairs, tmp_path / "out")
        assert torch.equal(made.model[2].linear.weight, model[2].linear.weight)
        assert_saved_alike(made.model, load(tmp_path / "out"), TEXTS)

    def test_on_half_precision_are_float32(
        self, folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = trained(folder, pairs, tmp_path / "out", dtype="bfloat16")
        assert made.record["dtype"] == "bfloat16"
        assert {weight.dtype for weight in adapters_of(made).values()} == {torch.float32}
        others = {weight.dtype for name, weight in made.model.named_parameters() if ".lora_" not in name}
        assert others == {torch.bfloat16}
        # By itself, where the machine is fast in it.
        monkeypatch.setattr("valuembed.backbone.dtypes.has_fast", lambda dtype, device: True)
        again = load(tmp_path / "out")
        assert again.dtype == torch.bfloat16
        assert_saved_alike(made.model, again, TEXTS)

    def test_turned_maps_are_told_to_peft(self, pairs: Path, tmp_path: Path) -> None:
        from valuembed.testing import tiny_checkpoint

        made = trained(tiny_checkpoint(tmp_path / "gpt2", "gpt2"), pairs, tmp_path / "out", "aligned_wva")
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
        assert made.record["maps"][0] == "h.0.attn.c_attn"
        assert_saved_alike(made.model, load(tmp_path / "out"), TEXTS)


class TestSaved:
    @pytest.mark.parametrize("source", ["local", "bundled"])
    def test_model_is_the_trained_one_both_ways(self, source: str, request: pytest.FixtureRequest) -> None:
        made: Training = request.getfixturevalue(source)
        again = load(made.output, dtype="float32")
        assert_saved_alike(made.model, again, TEXTS)
        plain = SentenceTransformer(str(made.output), trust_remote_code=True, model_kwargs={"dtype": "float32"})
        assert type(plain) is SentenceTransformer
        assert_same_vectors(plain, made.model, TEXTS)
        untrained = load(request.getfixturevalue("folder") if source == "local" else source, "va", dtype="float32")
        assert difference(again, untrained) > 1e-3

    def test_bundled_model_is_named_and_not_held(self, bundled: Training, tmp_path: Path) -> None:
        held = {file.name: file for file in bundled.output.rglob("*") if file.is_file()}
        assert not [name for name in held if name.startswith("model") and name.endswith(".safetensors")]
        assert held["adapter_model.safetensors"].stat().st_size < 1_500_000
        assert json.loads(held["adapter_config.json"].read_text())["base_model_name_or_path"] == "bundled"
        assert json.loads(held["valuembed_config.json"].read_text())["origin"]["name"] == "bundled"
        assert bundled.record["model"] == "bundled"

    @pytest.mark.parametrize("source", ["local", "bundled"])
    def test_folder_names_no_path_of_this_machine(
        self, source: str, folder: Path, pairs: Path, request: pytest.FixtureRequest
    ) -> None:
        import valuembed

        made: Training = request.getfixturevalue(source)
        places = [folder.parent, pairs.parent, made.output.parent, Path(valuembed.__file__).parent]
        for file in made.output.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert not [place for place in places if str(place).encode() in content], file.name

    def test_local_model_is_held(self, folder: Path, local: Training) -> None:
        own = load_file(local.output / "model.safetensors")
        stock = {
            name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
        }
        assert "layers.0.self_attn.q_proj.weight" in own
        assert all(torch.equal(tensor, stock[name]) for name, tensor in own.items())
        assert json.loads((local.output / "adapter_config.json").read_text())["base_model_name_or_path"] is None
        assert local.record["model"] == folder.name

    @pytest.mark.parametrize("source", ["folder", "bundled"])
    def test_merged_is_a_whole_model(
        self, source: str, pairs: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        adapted: Training = request.getfixturevalue({"folder": "local"}.get(source, source))
        model = request.getfixturevalue("folder") if source == "folder" else source
        made = trained(model, pairs, tmp_path / "out", merged=True)
        files = {file.name for file in (tmp_path / "out").iterdir()}
        assert "model.safetensors" in files
        assert not [name for name in files if name.startswith("adapter")]
        again = load(tmp_path / "out", dtype="float32")
        assert not any(".lora_" in name for name, _ in again.named_parameters())
        assert difference(again, adapted.model) < 1e-5
        assert_saved_alike(made.model, again, TEXTS)
        plain = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True, model_kwargs={"dtype": "float32"})
        assert_same_vectors(plain, made.model, TEXTS)
        assert "training-free" not in (tmp_path / "out" / "README.md").read_text()

    def test_card_says_that_it_was_fine_tuned(self, local: Training) -> None:
        card = (local.output / "README.md").read_text()
        assert "and then fine-tuned" in card
        assert "training-free" not in card

    def test_record_says_how_it_was_made(self, folder: Path, pairs: Path, local: Training) -> None:
        record = json.loads((local.output / "training.json").read_text())
        assert record == json.loads(json.dumps(local.record))
        assert record["data"] == {
            "file": "pairs.jsonl",
            "digest": read_training_pairs(pairs).digest,
            "pairs": 20,
            "columns": ["anchor", "positive"],
            "dropped": {},
            "evaluation": None,
        }
        assert record["recipe"] == local.model.recipe.to_dict()
        assert record["settings"]["steps"] == 4
        assert (record["steps"], record["processes"], record["resumed"]) == (4, 1, False)
        assert {"valuembed", "torch", "peft"} <= record["versions"].keys()
        # q and o of 32 x 32, k and v of 16 x 32, with rank 16 in three layers, and v in the last.
        per_layer = 16 * (2 * (32 + 32) + 2 * (32 + 16))
        assert record["parameters"]["trained"] == 3 * per_layer + 16 * (32 + 16)
        assert record["parameters"]["all"] == sum(weight.numel() for weight in local.model.parameters())

    def test_rows_and_the_curve_are_for_a_person(self, local: Training) -> None:
        named = dict(local.rows())
        assert named["model"] == "tiny, va"
        assert named["pairs"] == "20 from pairs.jsonl"
        share = local.record["parameters"]["trained"] / local.record["parameters"]["all"]
        assert named["trained"] == f"11,520 parameters, {share:.2%} of all"
        assert named["adapters on"] == "13 linear maps, scope attention"
        first, last = losses(local)[0], losses(local)[-1]
        assert named["loss"] == f"{first:.4f} -> {last:.4f}"
        assert (local.output / "loss.png").read_bytes().startswith(b"\x89PNG")
        (axes,) = loss_figure(local.record).axes
        assert axes.figure.get_suptitle() == "Training va on pairs.jsonl"
        assert list(axes.lines[0].get_ydata()) == losses(local)

    def test_of_a_long_run_means_are_drawn(self, local: Training) -> None:
        # 120 steps, losses 0 and 1 in turn: 60 means of two.
        record = {**local.record, "losses": [[step, (step + 1) % 2] for step in range(1, 121)]}
        (axes,) = loss_figure(record).axes
        (line,) = axes.lines
        assert line.get_label() == "loss, mean of 2 steps"
        assert list(line.get_ydata()) == [0.5] * 60
        assert list(line.get_xdata()) == list(range(2, 121, 2))

    def test_model_needs_no_matplotlib(
        self, folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        trained(folder, pairs, tmp_path / "out", steps=1, chart=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert not (tmp_path / "out" / "loss.png").exists()

    def test_pairs_that_were_read_and_a_recipe_are_taken_too(
        self, folder: Path, pairs: Path, local: Training, tmp_path: Path
    ) -> None:
        made = trained(folder, read_training_pairs(pairs), tmp_path / "out", local.model.recipe)
        assert_same_adapters(made, local)

    def test_training_goes_on_from_a_merged_model(self, pairs: Path, folder: Path, tmp_path: Path) -> None:
        made = trained(folder, pairs, tmp_path / "first", "aligned_va", merged=True, layers=[0, 2])
        second = trained(tmp_path / "first", pairs, tmp_path / "second", None)
        assert second.record["model"] == folder.name
        assert second.record["recipe"] == made.record["recipe"], "the saved folder's own"
        assert_saved_alike(second.model, load(tmp_path / "second"), TEXTS)
        with pytest.raises(RecipeError, match=r"tiny has an adapter already; train on a model that it was merged into"):
            trained(tmp_path / "second", pairs, tmp_path / "third", None)


class TestRefused:
    def test_fewer_pairs_than_a_batch(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        message = (
            r"pairs\.jsonl has 20 pairs, fewer than one batch of 21; take a batch size of at most 20, or give more"
        )
        with pytest.raises(InputError, match=message):
            trained(folder, pairs, tmp_path / "out", batch_size=21)
        assert list(tmp_path.iterdir()) == []

    def test_no_pairs(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "none.jsonl").write_text("\n")
        with pytest.raises(InputError, match=r"none\.jsonl is empty"):
            trained(folder, tmp_path / "none.jsonl", tmp_path / "out")

    def test_columns_that_are_not_there(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"pairs\.jsonl, line 1: .*'title'"):
            trained(folder, pairs, tmp_path / "out", columns=["anchor", "title"])

    @pytest.mark.parametrize("package", ["peft", "accelerate", "datasets"])
    def test_without_an_extra(
        self, folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        message = rf'^{package} is not installed; run: pip install .*\[train\]"$'
        with pytest.raises(MissingExtraError, match=message):
            trained(folder, pairs, tmp_path / "out")

    def test_an_unknown_setting(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        message = r"^lr=0\.1 is no setting of training; legal: scope, rank, dropout, epochs, .*, eval_every, seed$"
        with pytest.raises(RecipeError, match=message):
            trained(folder, pairs, tmp_path / "out", lr=0.1)

    def test_a_setting_out_of_range(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^temperature=0: it must be above 0$"):
            trained(folder, pairs, tmp_path / "out", temperature=0)
        with pytest.raises(RecipeError, match=r"^scope='mlp' is unknown; legal: attention, all$"):
            trained(folder, pairs, tmp_path / "out", scope="mlp")

    def test_a_calibrated_model(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        model = calibrate(load(folder, "va"), [text for pair in PAIRS for text in pair], progress=False)
        model.save_pretrained(str(tmp_path / "calibrated"))
        with pytest.raises(
            RecipeError, match=r"is calibrated, for vectors that training would change; train its source$"
        ):
            trained(tmp_path / "calibrated", pairs, tmp_path / "out", load(tmp_path / "calibrated").recipe)

    @pytest.mark.parametrize("parts", [(), (METHODS["wva"],)], ids=["single", "joined"])
    def test_a_recipe_that_centres(self, parts: tuple[Recipe, ...], folder: Path, pairs: Path, tmp_path: Path) -> None:
        recipe = replace(METHODS["va"], centring="general", joined=parts, method="mine")
        with pytest.raises(RecipeError) as caught:
            trained(folder, pairs, tmp_path / "out", recipe)
        assert str(caught.value) == (
            "method 'mine' takes away a mean of the decoder's vectors, which training would change; train another "
            "method, such as va, and join or centre the trained model"
        )

    def test_a_joined_recipe_is_trained_as_it_is(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        finished = trained(folder, pairs, tmp_path / "out", "joined", steps=2)
        assert finished.record["recipe"]["method"] == "joined"
        assert_same_vectors(finished.model, load(finished.output), ["x", "one two"])

    def test_a_model_with_an_adapter(self, local: Training, pairs: Path, tmp_path: Path) -> None:
        message = r"^tiny has an adapter already; train on a model that it was merged into \(merged=True\)$"
        with pytest.raises(RecipeError, match=message):
            trained(local.output, pairs, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_exists(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        trained(folder, pairs, output, steps=1)
        with pytest.raises(OutputError, match=r"^output .*out exists and is not empty; choose another name or"):
            trained(folder, pairs, output, steps=1)
        made = trained(folder, pairs, output, steps=2, overwrite=True)
        assert json.loads((output / "training.json").read_text())["steps"] == made.record["steps"] == 2

    def test_an_output_that_holds_something_else(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match="holds no model of valuembed, so it is not overwritten"):
            trained(folder, pairs, tmp_path, overwrite=True)

    def test_texts_that_are_also_evaluated_on_are_warned_about(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        message = (
            r"^texts of sts\.jsonl that are also in pairs\.jsonl, which is trained on: 40, the first 'A man is slicing "
            r"an onion\.'; the scores will be too good$"
        )
        with pytest.warns(UserWarning, match=message):
            made = trained(folder, pairs, tmp_path / "out", evaluation=f"sts:{GRADED}", steps=1)
        assert [step for step, _ in made.record["evaluations"]] == [0, 1]

    def test_other_texts_are_not(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        dev = other_texts(tmp_path / "dev.jsonl")
        with warnings.catch_warnings(action="error"):
            trained(folder, pairs, tmp_path / "out", evaluation=dev, steps=1)


def test_a_run_leaves_no_trace_in_the_working_folder(
    folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(folder, pairs, Path("made") / "out", steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["out"]
