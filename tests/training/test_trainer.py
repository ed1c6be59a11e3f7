"""The loop of training: what it learns, each setting, numbers that are none, several processes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from training_runs import (
    PAIRS,
    adapters_of,
    assert_same_adapters,
    furthest,
    losses,
    pairs_file,
    separation,
    trained,
)
from watching import hooks_of

from valuembed.errors import InputError, OutputError, ReadingError
from valuembed.models.loading import load
from valuembed.models.value_transformer import ValueTransformer
from valuembed.training.trainer import TRAINED, _batches, _no_notices, _Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs_file(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def plain(folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with no setting of its own, for others to be compared with."""
    return trained(folder, pairs, tmp_path_factory.mktemp("plain") / "out")


class TestLearning:
    @pytest.mark.parametrize("method", ["va", "aligned_wva", "hidden_mean"])
    def test_pairs_come_together_and_others_apart(self, folder: Path, pairs: Path, tmp_path: Path, method: str) -> None:
        before = separation(load(folder, method))
        made = trained(folder, pairs, tmp_path / "out", method, steps=15, batch_size=20, learning_rate=1e-2)
        history = losses(made)
        assert np.isfinite(history).all()
        assert np.mean(history[-3:]) < 0.5 * np.mean(history[:3])
        assert separation(made.model) > before + 0.2

    def test_of_the_bundled_model_is_seen_by_an_evaluation(self, tmp_path: Path) -> None:
        # Trained on half the pairs, and evaluated on the others and on pairs that mean something else.
        rows = [{"sentence1": a, "sentence2": b, "score": 5} for a, b in PAIRS[10:]]
        rows += [
            {"sentence1": a, "sentence2": PAIRS[10 + (at + 3) % 10][1], "score": 0}
            for at, (a, _) in enumerate(PAIRS[10:])
        ]
        dev = tmp_path / "dev.jsonl"
        dev.write_text("".join(json.dumps({**row, "split": "dev"}) + "\n" for row in rows))
        made = trained(
            "bundled", pairs_file(tmp_path / "half.jsonl", 10), tmp_path / "out", evaluation=f"sts:{dev}", eval_every=3
        )
        assert [step for step, _ in made.record["evaluations"]] == [0, 3, 4]
        assert all(-100 <= score <= 100 for _, score in made.record["evaluations"])
        assert made.record["data"]["evaluation"] == "dev.jsonl"
        assert losses(made)[-1] < losses(made)[0]
        named = dict(made.rows())
        assert named["dev.jsonl"].startswith(f"Spearman {made.record['evaluations'][0][1]:.2f} -> ")
        assert named["steps"].startswith("4 in ")


class TestSettings:
    def test_hard_negatives_are_used(self, folder: Path, plain: Any, tmp_path: Path) -> None:
        file = pairs_file(tmp_path / "triplets.jsonl", negatives=True)
        made = trained(folder, file, tmp_path / "out", learning_rate=5e-3, steps=15)
        assert made.record["data"]["columns"] == ["anchor", "positive", "negative_1"]
        # More to tell apart: at the same weights and the same pairs, the loss is higher.
        assert losses(made)[0] > losses(plain)[0] + 0.1
        assert losses(made)[-1] < losses(made)[0]

    @pytest.mark.parametrize("options", [{}, {"matryoshka": (4,)}, {"checkpointing": True}], ids=str)
    def test_cached_gradients_are_those_of_the_whole_batch(
        self, folder: Path, pairs: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        # Without a warm-up, whose first step is nothing. Adam makes large steps of small gradients, noise included.
        whole = trained(folder, pairs, tmp_path / "whole", steps=2, warmup=0, **options)
        parts = trained(folder, pairs, tmp_path / "parts", steps=2, warmup=0, mini_batch=3, **options)
        assert np.allclose(losses(whole), losses(parts), atol=1e-4)
        assert furthest(whole, parts) < 1e-5

    @pytest.mark.parametrize("mini_batch", [None, 4])
    def test_checkpointing_changes_no_weight(
        self, folder: Path, pairs: Path, tmp_path: Path, mini_batch: int | None
    ) -> None:
        kept = trained(folder, pairs, tmp_path / "kept", "aligned_wva", mini_batch=mini_batch)
        again = trained(folder, pairs, tmp_path / "again", "aligned_wva", mini_batch=mini_batch, checkpointing=True)
        assert_same_adapters(kept, again)
        assert not again.model.reader.model.is_activation_checkpointing
        assert hooks_of(again.model) == hooks_of(kept.model)

    def test_matryoshka_is_the_mean_over_widths(self, folder: Path, pairs: Path, plain: Any, tmp_path: Path) -> None:
        made = trained(folder, pairs, tmp_path / "out", matryoshka=(8, 2))
        # The first loss, of the same batch at the same weights: recomputed from the untrained vectors, cut.
        batch = first_batch(folder, pairs, tmp_path)
        recomputed = [first_loss(folder, batch, width) for width in (16, 8, 2)]
        assert abs(recomputed[0] - losses(plain)[0]) < 2e-4
        assert abs(np.mean(recomputed) - losses(made)[0]) < 2e-4

    @pytest.mark.parametrize("width", [16, 17, 0, -1])
    def test_a_width_that_is_none_is_refused(self, folder: Path, pairs: Path, tmp_path: Path, width: int) -> None:
        message = rf"^matryoshka={width}: widths have to be above 0 and below that of the vectors, 16$"
        with pytest.raises(InputError, match=message):
            trained(folder, pairs, tmp_path / "out", matryoshka=(8, width))
        assert list(tmp_path.iterdir()) == []

    def test_dropout_is_of_the_seed(self, folder: Path, pairs: Path, plain: Any, tmp_path: Path) -> None:
        one, same = (trained(folder, pairs, tmp_path / name, dropout=0.3) for name in ("one", "same"))
        assert_same_adapters(one, same)
        assert furthest(one, plain) > 1e-3

    def test_another_seed_is_another_run(self, folder: Path, pairs: Path, plain: Any, tmp_path: Path) -> None:
        again, other = (trained(folder, pairs, tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
        assert_same_adapters(again, plain)
        assert furthest(other, plain) > 1e-3

    def test_epochs_end_with_what_is_left(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        # 20 pairs are 8 + 8 + 4: three steps a pass.
        made = trained(folder, pairs, tmp_path / "out", steps=None, epochs=1.5)
        assert made.record["steps"] == 5
        assert len(losses(made)) == 5

    def test_roles_have_their_templates_and_prompts(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = pairs_file(tmp_path / "triplets.jsonl", negatives=True)
        seen: set[tuple[str, str | None, str | None]] = set()
        texts = ValueTransformer.tokenize_texts

        def spy(self: Any, given: Any, prompt: Any, role: Any, *args: Any, **kwargs: Any) -> Any:
            sides = {text: side for pair in PAIRS for text, side in zip(pair, ("anchor", "other"), strict=True)}
            seen.update((sides[text], prompt, role) for text in given if text in sides)
            return texts(self, given, prompt, role, *args, **kwargs)

        monkeypatch.setattr(ValueTransformer, "tokenize_texts", spy)
        template = {"query": "Find: {text}", "document": "Found: {text}", "default": "{text}"}
        prompts = {"query": "Look for ", "document": "Look at "}
        made = trained(folder, file, tmp_path / "both", template=template, prompts=prompts, steps=1)
        assert seen == {("anchor", "Look for ", "query"), ("other", "Look at ", "document")}
        assert made.record["prompts"] == prompts
        seen.clear()
        trained(folder, file, tmp_path / "one", prompts={"query": "Look for "}, steps=1)
        # Without role templates a role is nothing.
        assert seen == {("anchor", "Look for ", None), ("other", None, None)}

    def test_role_templates_and_prompts_change_the_loss(
        self, folder: Path, pairs: Path, plain: Any, tmp_path: Path
    ) -> None:
        template = {"query": "Find: {text}", "default": "{text}"}
        with_role = trained(folder, pairs, tmp_path / "role", template=template, steps=1)
        with_prompt = trained(folder, pairs, tmp_path / "prompt", prompts={"document": "Look at "}, steps=1)
        first = {round(losses(run)[0], 3) for run in (plain, with_role, with_prompt)}
        assert len(first) == 3

    def test_no_bar_is_shown_where_there_is_no_terminal(
        self, folder: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        trained(folder, pairs, tmp_path / "out")
        said = capfd.readouterr()
        assert said.out == ""
        assert "loss" not in said.err


def first_batch(folder: Path, pairs: Path, tmp_path: Path) -> list[list[str]]:
    """Anchors and positives of the first step of a run with the settings of `trained`."""
    seen: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        texts = ValueTransformer.tokenize_texts

        def spy(self: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
            if len(given) > 1:  # one text is how it is found out what is reached
                seen.append(list(given))
            return texts(self, given, *args, **kwargs)

        patch.setattr(ValueTransformer, "tokenize_texts", spy)
        trained(folder, pairs, tmp_path / "spied", steps=1)
    return seen[:2]


def first_loss(folder: Path, batch: list[list[str]], width: int) -> float:
    anchors, positives = (load(folder, "va", normalize=False).encode(side)[:, :width] for side in batch)
    anchors, positives = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchors, positives))
    logits = anchors @ positives.T / 0.05
    return float((np.log(np.exp(logits).sum(axis=1)) - logits.diagonal()).mean())


class TestNumbersThatAreNone:
    def test_a_weight_that_becomes_none_ends_the_run(
        self, folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = _Trainer.training_step

        def break_it(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 3:  # the fourth step is under way
                next(w for w in self.model.parameters() if w.requires_grad).data[0, 0] = float("nan")
            return step(self, *args, **kwargs)

        monkeypatch.setattr(_Trainer, "training_step", break_it)
        state = tmp_path / "out.training"
        message = r"the loss is not finite at step 4; the last good checkpoint stays in .*out\.training: lower learning"
        with pytest.raises(ReadingError, match=message):
            trained(folder, pairs, tmp_path / "out", steps=6, save_every=2)
        self._is_good(state, "checkpoint-2")
        assert not (tmp_path / "out").exists()
        # It was the fault of one step: started again, the run goes on from there, and ends.
        monkeypatch.undo()
        made = trained(folder, pairs, tmp_path / "out", steps=6, save_every=2)
        assert made.record["resumed"]
        assert len(losses(made)) == 6

    @pytest.mark.parametrize(("save_every", "found"), [(1, "the weight .*lora_A.* after step 1"), (2, "the loss")])
    def test_a_learning_rate_without_bounds_ends_the_run(
        self, folder: Path, pairs: Path, tmp_path: Path, save_every: int, found: str
    ) -> None:
        with pytest.raises(ReadingError, match=rf"^{found}.* in .*out\.training: lower learning_rate, or use dtype"):
            trained(folder, pairs, tmp_path / "out", learning_rate=float("inf"), warmup=0, save_every=save_every)
        assert [path.name for path in (tmp_path / "out.training").iterdir()] == ["run.json"]

    def test_weights_that_become_none_are_not_saved(
        self, folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = _Trainer.training_step

        def break_it(self: Any, *args: Any, **kwargs: Any) -> Any:
            loss = step(self, *args, **kwargs)
            if self.state.global_step == 3:
                next(w for w in self.model.parameters() if w.requires_grad).grad.fill_(float("nan"))
            return loss

        monkeypatch.setattr(_Trainer, "training_step", break_it)
        message = (
            "^the weight .*lora_A.* is not finite after step 4; the checkpoint before stays in .*lower learning_rate"
        )
        with pytest.raises(ReadingError, match=message):
            trained(folder, pairs, tmp_path / "out", steps=6, save_every=2)
        self._is_good(tmp_path / "out.training", "checkpoint-2")

    def _is_good(self, state: Path, last: str) -> None:
        assert sorted(path.name for path in state.iterdir()) == [last, "run.json"]
        kept = load_file(state / last / TRAINED)
        assert kept
        assert all(bool(torch.isfinite(weight).all()) for weight in kept.values())


def test_a_checkpoint_holds_what_was_trained_and_no_more(
    folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Tensor] = {}
    files: set[str] = set()
    save = _Trainer._save_checkpoint

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        (last,) = Path(self.args.output_dir).glob("checkpoint-4")
        kept.update(load_file(last / TRAINED))
        files.update(path.name for path in last.iterdir())

    monkeypatch.setattr(_Trainer, "_save_checkpoint", spy)
    made = trained(folder, pairs, tmp_path / "out", save_every=4)
    weights = adapters_of(made)
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())
    assert not {"model.safetensors", "README.md", "modules.json"} & files


class TestSeveralProcesses:
    """Two of them, on the CPU, as ``accelerate launch`` starts them where there are two GPUs."""

    def launch(self, *arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
        # With --cpu accelerate would start one process, whatever the number. The port is any that is free.
        launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
        launcher += " --mixed_precision no --dynamo_backend no --main_process_port 0"
        return subprocess.run(
            [sys.executable, *launcher.split(), *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @pytest.mark.process
    def test_are_one_process_with_their_batches_together(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        # 20 pairs are five batches of 4: two for each process, and one that is left out, as no process may wait.
        done = self.launch(
            *("-m", "valuembed", "train", folder, "--pairs", pairs, "--method", "va", "-o", "out", "--device", "cpu"),
            *("--epochs", "1", "--batch-size", "4", "--save-every", "1", "--json"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        # The first process prints, and it alone.
        record = json.loads(done.stdout)
        assert (record["processes"], record["steps"]) == (2, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert json.loads((tmp_path / "out" / "training.json").read_text()) == record

        # Batches are dealt out in turn, so the first two are the first one of a process that takes 8. An anchor's loss
        # is against the positives of both, and the mean over both is logged and descended.
        alone = trained(folder, pairs, tmp_path / "alone", steps=2, batch_size=8)
        assert [loss for _, loss in record["losses"]] == pytest.approx(losses(alone), abs=1e-4)
        together = load(tmp_path / "out")
        weights = {name: weight for name, weight in together.named_parameters() if ".lora_" in name}
        for name, weight in adapters_of(alone).items():
            assert torch.allclose(weights[name], weight, atol=1e-5), name
        assert abs(together.encode(["a cat", "rain"]) - alone.model.encode(["a cat", "rain"])).max() < 1e-5
        half = trained(folder, pairs, tmp_path / "half", steps=1, batch_size=4)
        assert losses(half)[0] < losses(alone)[0] - 0.2

    def test_have_to_fill_a_batch_each(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="has 15 pairs, fewer than one batch of 16; take a batch size of at most"):
            trained(folder, pairs_file(tmp_path / "few.jsonl", 15), tmp_path / "out")


@pytest.mark.parametrize(
    ("pairs", "processes", "expected"),
    # 8 + 8 + 4 pairs; twice 8 for each of two; the same with 7 left out; once 8 for each of two.
    [(20, 1, 3), (32, 2, 2), (39, 2, 2), (16, 2, 1), (15, 2, 0)],
)
def test_steps_of_a_pass(pairs: int, processes: int, expected: int) -> None:
    assert _batches(pairs, 8, processes) == expected


def test_pairs_that_fill_no_batch_with_different_texts_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One anchor for all: no two of the pairs may stand in one batch, and a process must not get a smaller one.
    file = tmp_path / "alike.jsonl"
    file.write_text("".join(json.dumps({"anchor": "Rain.", "positive": pair[1]}) + "\n" for pair in PAIRS))
    monkeypatch.setattr("valuembed.training.trainer.count_processes", lambda: 2)
    message = (
        r"alike\.jsonl: no batch of 8 pairs for each of 2 processes can be made of different texts; take a smaller"
    )
    with pytest.raises(InputError, match=message):
        trained(folder, file, tmp_path / "out", steps=None)


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left"), RuntimeError("No space left\nat: zip.cc")]
)
def test_a_checkpoint_that_cannot_be_written_names_its_folder(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("valuembed.training.trainer.save_file", full)
    with pytest.raises(OutputError, match=r"cannot write a checkpoint into .*No space left$"):
        trained("bundled", pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "out", steps=2)


def test_nothing_is_said_of_the_times_of_checkpoints(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("transformers.trainer_utils")
    with caplog.at_level(logging.WARNING, log.name):
        with _no_notices():
            log.warning("mtime may not be reliable on this filesystem, falling back to numerical ordering")
            log.warning("something else")
        assert [record.getMessage() for record in caplog.records] == ["something else"]
        log.warning("mtime may not be reliable")
        assert len(caplog.records) == 2, "only training is quiet"
