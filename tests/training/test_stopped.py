"""Runs of training that are stopped, by hand or by force, and started again: as if they had not been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import assert_saved_alike
from training_runs import PAIRS, TEXTS, assert_same_adapters, losses, other_texts, pairs_file, trained

from valuembed.errors import OutputError
from valuembed.models.loading import load
from valuembed.testing import tiny_checkpoint
from valuembed.training.finetune import Training, _last_checkpoint
from valuembed.training.trainer import _Trainer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs_file(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C in the middle of a step, counted from 1."""
    original = _Trainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    patch.setattr(_Trainer, "training_step", interrupted)


# A pass is 3 steps, so that runs end in the middle of their third pass. Dropout draws numbers in each step.
OPTIONS = {"steps": 8, "save_every": 2, "dropout": 0.2, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def whole(folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run that nothing stopped."""
    return trained(folder, pairs, tmp_path_factory.mktemp("whole") / "out", **OPTIONS)


@pytest.fixture(scope="module")
def stopped(folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A run that was stopped, copied into a folder; gives its output's name."""
    state = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, pairs, state / "out", **OPTIONS)

    def copy(target: Path) -> Path:
        shutil.copytree(state / "out.training", target / "out.training")
        return target / "out"

    return copy


@pytest.mark.slow
class TestStopped:
    def check(self, again: Training, whole: Training, *, resumed: bool = True) -> None:
        assert_same_adapters(again, whole)
        assert losses(again) == pytest.approx(losses(whole), abs=1e-5)
        assert again.record["resumed"] is resumed
        assert [path.name for path in again.output.parent.iterdir()] == ["out"]
        assert_saved_alike(again.model, load(again.output), TEXTS)

    # Before the first checkpoint, behind it, behind a pass and at the last step; the next test stops at 4 and 6.
    @pytest.mark.parametrize("step", [2, 3, 7, 8])
    def test_at_any_step_it_ends_as_if_it_had_not_been(
        self, folder: Path, pairs: Path, whole: Training, tmp_path: Path, step: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                trained(folder, pairs, tmp_path / "out", **OPTIONS)
        assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
        self.check(trained(folder, pairs, tmp_path / "out", **OPTIONS), whole, resumed=step > 2)

    def test_again_and_again(self, folder: Path, pairs: Path, whole: Training, tmp_path: Path) -> None:
        for step in (4, 4, 6):
            with pytest.MonkeyPatch.context() as patch:
                stop_at(patch, step)
                with pytest.raises(KeyboardInterrupt):
                    trained(folder, pairs, tmp_path / "out", **OPTIONS)
        self.check(trained(folder, pairs, tmp_path / "out", **OPTIONS), whole)

    @pytest.mark.parametrize("part", ["_save_optimizer_and_scheduler", "_save_rng_state", "trainer_state.json is cut"])
    def test_while_it_writes_a_checkpoint_it_takes_the_one_before(
        self, folder: Path, pairs: Path, whole: Training, tmp_path: Path, part: str
    ) -> None:
        state = tmp_path / "out.training"
        with pytest.MonkeyPatch.context() as patch:
            if part.startswith("_"):
                original = getattr(_Trainer, part)

                def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
                    if self.state.global_step == 4:
                        raise KeyboardInterrupt
                    return original(self, *args, **kwargs)

                patch.setattr(_Trainer, part, interrupted)
            else:
                stop_at(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                trained(folder, pairs, tmp_path / "out", **OPTIONS)
        assert (state / "checkpoint-4").is_dir()
        if not part.startswith("_"):
            (state / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": ')
        self.check(trained(folder, pairs, tmp_path / "out", **OPTIONS), whole)

    def test_with_cached_gradients_and_an_evaluation(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        dev = other_texts(tmp_path / "dev.jsonl")
        options = {**OPTIONS, "mini_batch": 3, "evaluation": f"sts:{dev}", "eval_every": 3, "matryoshka": (8,)}
        whole = trained(folder, pairs, tmp_path / "whole" / "out", **options)
        again = tmp_path / "again" / "out"
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 6)
            with pytest.raises(KeyboardInterrupt):
                trained(folder, pairs, again, **options)
        made = trained(folder, pairs, again, **options)
        self.check(made, whole)
        evaluations = [np.array(run.record["evaluations"]) for run in (made, whole)]
        np.testing.assert_allclose(*evaluations, atol=1e-3)
        assert [step for step, _ in whole.record["evaluations"]] == [0, 3, 6, 8]

    @pytest.mark.process
    def test_by_force_in_a_process_of_its_own(self, folder: Path, pairs: Path, whole: Training, tmp_path: Path) -> None:
        program = f"""
            import os, signal, sys
            sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
            from pathlib import Path
            from training_runs import trained
            from valuembed.training.trainer import _Trainer
            step = _Trainer.training_step
            def killed(self, *args, **kwargs):
                if self.state.global_step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, *args, **kwargs)
            _Trainer.training_step = killed
            trained(Path({str(folder)!r}), Path({str(pairs)!r}), Path("out"), **{OPTIONS!r})
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
        self.check(trained(folder, pairs, tmp_path / "out", **OPTIONS), whole)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"seed": 7}, "settings.seed=0; asked for is 7:"),
            ({"learning_rate": 1e-4}, "settings.learning_rate=0.005; asked for is 0.0001:"),
            ({"matryoshka": (8,)}, r"settings.matryoshka=\[\]; asked for is \[8\]:"),
            ({"method": "wva"}, 'recipe.weights="mean"; asked for is "last":'),
            ({"prompts": {"query": "Find "}}, 'prompts.query=null; asked for is "Find ":'),
            ({"dtype": "bfloat16"}, 'dtype="float32"; asked for is "bfloat16":'),
            ({"max_tokens": 20}, "max_tokens=256; asked for is 20:"),
        ],
        ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
    )
    def test_it_does_not_go_on_with_other_settings(
        self, folder: Path, pairs: Path, stopped: Callable[[Path], Path], tmp_path: Path, other: Any, message: str
    ) -> None:
        output = stopped(tmp_path)
        start = r"^.*out\.training holds a run that was stopped, with "
        end = " start it with the same settings, or remove that folder$"
        with pytest.raises(OutputError, match=start + message + end):
            trained(folder, pairs, output, **{**OPTIONS, **other})

    def test_it_does_not_go_on_with_other_pairs(
        self, folder: Path, stopped: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        output = stopped(tmp_path)
        changed = pairs_file(tmp_path / "pairs.jsonl")
        changed.write_text(changed.read_text().replace(PAIRS[0][1], "Something else."))
        with pytest.raises(OutputError, match=r'with data\.digest="[0-9a-f]{64}"; asked for is "[0-9a-f]{64}": start'):
            trained(folder, changed, output, **OPTIONS)

    def test_it_does_not_go_on_with_another_model_of_that_name(
        self, folder: Path, pairs: Path, stopped: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        output = stopped(tmp_path)
        other = tiny_checkpoint(tmp_path / folder.name, "qwen3", tokenizer="byte_level_bos", seed=1)
        with pytest.raises(OutputError, match=r"with content=.*; asked for is .*: start it with the same settings"):
            trained(other, pairs, output, **OPTIONS)

    def test_it_does_not_go_on_with_another_number_of_processes(
        self,
        folder: Path,
        pairs: Path,
        stopped: Callable[[Path], Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        output = stopped(tmp_path)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(OutputError, match="with processes=1; asked for is 2: start it with the same settings"):
            trained(folder, pairs, output, **OPTIONS)


def test_a_checkpoint_is_whole_when_all_processes_have_written(tmp_path: Path) -> None:
    assert _last_checkpoint(tmp_path, 2) is None
    for step in (8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        (tmp_path / f"checkpoint-{step}" / "rng_state_0.pth").touch()
    (tmp_path / "checkpoint-8" / "rng_state_1.pth").touch()
    (tmp_path / "checkpoint-tmp").mkdir()
    assert _last_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-10" / "rng_state_1.pth").touch()
    assert _last_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-10")
