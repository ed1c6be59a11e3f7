"""The loop of a training run: sentence-transformers' trainer, with checkpoints that hold no more than was trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState

from valuembed._utils.progress import track
from valuembed._utils.text import counted
from valuembed.data import StsFile, TrainingPairs
from valuembed.errors import InputError, OutputError, ReadingError, ValuembedError
from valuembed.models import ValueEncoder
from valuembed.training.settings import TrainSettings, count_processes

TRAINED = "trained.safetensors"
"""In a checkpoint: the weights that are trained, and no others."""

_EVALUATION = "dev"


def run(
    encoder: ValueEncoder,
    pairs: TrainingPairs,
    dev: StsFile | None,
    settings: TrainSettings,
    state: Path,
    *,
    prompts: Mapping[str, str],
    resumed: str | None,
    progress: bool,
) -> dict[str, Any]:
    """Train the adapters of an encoder.

    Args:
        encoder: with adapters, all else frozen.
        pairs: to train on.
        dev: to evaluate on.
        settings: see there.
        state: folder for checkpoints.
        prompts: instructions by role.
        resumed: the checkpoint to go on from.
        progress: show a bar.

    Returns:
        ``steps``, ``losses`` and ``evaluations`` by step (Spearman x 100), ``processes``.

    Raises:
        InputError: the pairs' texts are so much alike that they fill no batch.
        ReadingError: the loss or a weight is no number.
    """
    processes = count_processes()
    total = settings.steps or math.ceil(settings.epochs * _batches(len(pairs), settings.batch_size, processes))
    if settings.checkpointing:
        encoder.reader.model.activation_checkpointing_enable({"use_reentrant": False})
    roles = {column: "query" if number == 0 else "document" for number, column in enumerate(pairs.texts)}
    by_role = encoder.recipe.query_template is not None or encoder.recipe.document_template is not None
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(state),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup * total),
        weight_decay=0.0,
        seed=settings.seed,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        # Processes wait for each other's vectors in each step, and for as many of them.
        dataloader_drop_last=processes > 1,
        prompts={column: prompts[role] for column, role in roles.items() if prompts.get(role)},
        router_mapping=roles if by_role else {},
        logging_strategy="steps",
        logging_steps=1,
        # A loss that is no number is an error here, not something to be left out of a mean.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every or max(1, total // 10),
        save_total_limit=2,
        eval_strategy="steps" if dev else "no",
        eval_steps=settings.eval_every or max(1, total // 5),
        eval_on_start=dev is not None and resumed is None,
        report_to="none",
        disable_tqdm=True,
        use_cpu=encoder.device.type == "cpu",
        dataloader_pin_memory=encoder.device.type == "cuda",
    )
    trainer = _Trainer(
        model=encoder,
        args=arguments,
        train_dataset=Dataset.from_dict(dict(pairs.texts)),
        loss=_loss(encoder, settings, processes),
        evaluator=_evaluator(dev) if dev else None,
    )
    # It would print every entry of the log where there is no bar.
    trainer.remove_callback(PrinterCallback)
    with track(progress, total=total, desc="training", unit="step") as bar, _no_notices():
        trainer.add_callback(_Steps(bar))
        trainer.train(resume_from_checkpoint=resumed)
        if dev:
            trainer.evaluate()
    encoder.eval()
    if settings.checkpointing:
        encoder.reader.model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
    # The first process removes the checkpoints, to which all have written.
    trainer.accelerator.wait_for_everyone()
    if not trainer.state.global_step:
        raise InputError(
            f"{pairs.path}: no batch of {settings.batch_size} pairs for each of "
            f"{counted(processes, 'process', 'processes')} can be made of different texts; take a smaller batch_size, "
            "or pairs that repeat fewer texts"
        )
    history = trainer.state.log_history
    metric = f"eval_{_EVALUATION}_spearman_cosine"
    # The last step may have been evaluated twice.
    scores = {entry["step"]: 100 * float(entry[metric]) for entry in history if metric in entry}
    return {
        "steps": trainer.state.global_step,
        "processes": processes,
        "losses": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "evaluations": [[step, round(score, 4)] for step, score in sorted(scores.items())],
    }


def _batches(pairs: int, batch_size: int, processes: int) -> int:
    """Steps in a pass: a last batch may be small, but not where several processes have to have as many pairs."""
    return math.ceil(pairs / batch_size) if processes == 1 else pairs // batch_size // processes


def _loss(encoder: ValueEncoder, settings: TrainSettings, processes: int) -> nn.Module:
    """Contrastive loss with the batch's other positives, and hard negatives where there are any, as negatives."""
    scale, gather = 1 / settings.temperature, processes > 1
    loss: nn.Module
    if settings.mini_batch:
        loss = CachedMultipleNegativesRankingLoss(
            encoder, scale=scale, mini_batch_size=settings.mini_batch, gather_across_devices=gather
        )
    else:
        loss = MultipleNegativesRankingLoss(encoder, scale=scale, gather_across_devices=gather)
    if settings.matryoshka:
        widths = [encoder.get_embedding_dimension() or 0, *settings.matryoshka]
        shares = [1 / len(widths)] * len(widths)
        loss = MatryoshkaLoss(encoder, loss, matryoshka_dims=widths, matryoshka_weights=shares)
    return loss


def _evaluator(dev: StsFile) -> EmbeddingSimilarityEvaluator:
    return EmbeddingSimilarityEvaluator(
        dev.sentences1, dev.sentences2, dev.scores, name=_EVALUATION, write_csv=False, show_progress_bar=False
    )


class _Steps(TrainerCallback):
    """Moves a bar on by the steps of a run, those before it was resumed included."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)


@contextmanager
def _no_notices() -> Iterator[None]:
    """Keep off the screen that checkpoints are sorted by their numbers, which is what is wanted of them."""
    log = logging.getLogger("transformers.trainer_utils")
    log.addFilter(_is_news)
    try:
        yield
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "mtime may not be reliable" not in record.getMessage()


class _Trainer(SentenceTransformerTrainer):
    """A trainer that stops at the first loss that is no number, and keeps in its checkpoints only what it trains."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave the card alone: this library writes its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        made = super().compute_loss(*args, **kwargs)
        loss = made[0] if isinstance(made, tuple) else made
        if not bool(torch.isfinite(loss).all()):
            raise ReadingError(
                f"the loss is not finite at step {self.state.global_step + 1}; the last good checkpoint stays in "
                f"{self.args.output_dir}: lower learning_rate, or use dtype='float32'"
            )
        return made

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint.

        Raises:
            OutputError: it cannot be written; torch and safetensors have errors of their own for a full disk.
        """
        try:
            super()._save_checkpoint(*args, **kwargs)
        except ValuembedError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:1])
            raise OutputError(f"cannot write a checkpoint into {self.args.output_dir}: {reason}") from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trained = _trained(self.model)
        if bad := [name for name, weight in trained.items() if not bool(torch.isfinite(weight).all())]:
            raise ReadingError(
                f"the weight {bad[0]} is not finite after step {self.state.global_step}; the checkpoint before stays "
                f"in {self.args.output_dir}: lower learning_rate, or use dtype='float32'"
            )
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach().cpu().contiguous() for name, weight in trained.items()}, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        kept = load_file(Path(resume_from_checkpoint) / TRAINED)
        with torch.no_grad():
            for name, weight in _trained(self.model).items():
                weight.copy_(kept[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
