"""The ``SentenceTransformer`` that ``load`` returns: what a module cannot know by itself."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import truncate_embeddings
from torch import Tensor
from tqdm.auto import tqdm

from valuembed import calibration, cards
from valuembed.arrivals import Arrivals
from valuembed.errors import BlankTextWarning, InputError, NotFiniteError, RecipeError, TruncationWarning
from valuembed.inputs import check_texts
from valuembed.module import ValueTransformer
from valuembed.quantizing import precision_of
from valuembed.recipes import Recipe
from valuembed.resolution import NO_LIMIT

_BETWEEN = ("sentence_transformers", "torch", "contextlib")


@dataclass(frozen=True)
class EncodeReport:
    """What one ``encode`` call did.

    Attributes:
        texts: how many texts came in.
        tokens: tokens of the sequences that were fed, templates included.
        truncated: texts that lost tokens of their end.
        blank: texts without a visible character.
        reused: of the tokens, those of a template's constant beginning, which was computed once for all texts.
    """

    texts: int
    tokens: int
    truncated: int
    blank: int
    reused: int = 0

    @classmethod
    def total(cls, reports: Iterable[EncodeReport]) -> EncodeReport:
        """One report for the parts of a call."""
        return cls(*(sum(counts) for counts in zip(*(astuple(report) for report in reports), strict=True)))


def _callers_level() -> int:
    """The ``stacklevel`` at which a warning points to the user's line, past this library and those between."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("valuembed", *_BETWEEN):
        frame, level = frame.f_back, level + 1
    return level


def check_finite(vectors: Tensor, reader: ValueTransformer) -> None:
    """Raise where a vector of ``[b, width]`` is NaN or infinite.

    Raises:
        NotFiniteError: with the rows.
    """
    bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise NotFiniteError(
            f"the embedding of {len(bad)} texts is not finite (NaN or infinite): rows {rows}; the weights are "
            f"damaged or {reader.model.dtype} overflows in this model, try dtype='float32'"
        )


class ValueEncoder(SentenceTransformer):
    """A ``SentenceTransformer`` whose first module reads attention values.

    It adds what a module cannot know: row numbers in errors, one report a call (:attr:`report`), and steps cut
    by tokens over the whole input. A plain ``SentenceTransformer`` on the saved folder gives the same vectors, up to
    rounding.
    """

    _module_classes: Mapping[str, type[torch.nn.Module]] = {
        "valuembed.module.ValueTransformer": ValueTransformer,
        calibration.TYPE: calibration.Calibration,
    }
    report: EncodeReport | None = None

    @property
    def reader(self) -> ValueTransformer:
        """The module that reads the decoder."""
        module = self[0]
        assert isinstance(module, ValueTransformer)
        return module

    @property
    def recipe(self) -> Recipe:
        """The recipe that is read, its layers absolute."""
        return self.reader.recipe

    @property
    def precision(self) -> str:
        """What is computed in, and what the weights are kept in where that is something else."""
        return precision_of(self.reader.model)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``SentenceTransformer.encode``; steps are cut by tokens, so ``batch_size`` decides nothing.

        Args:
            inputs: a text or b texts.
            args, kwargs: as in sentence-transformers.

        Returns:
            ``[b, width]`` float32; ``(0, width)`` for no texts.

        Raises:
            InputError: something that is not a text, with its row.
            NotFiniteError: an embedding is not finite, with its row.
        """
        if hasattr(inputs, "to_list"):  # a column of pandas or polars
            inputs = inputs.to_list()
        self.report = None
        result = super().encode(inputs, *args, **kwargs)
        if isinstance(inputs, (str, dict)) or not hasattr(inputs, "__len__") or len(inputs):
            return result
        self.report = EncodeReport(0, 0, 0, 0)
        return self._no_rows(result, kwargs.get("truncate_dim"), kwargs.get("precision"))

    def _no_rows(self, result: Any, truncate_dim: int | None, precision: str | None) -> Any:
        width = min(self.get_embedding_dimension() or 0, truncate_dim or NO_LIMIT)
        kinds = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
        if precision in ("binary", "ubinary"):
            width = -(-width // 8)
        if isinstance(result, np.ndarray):
            return np.zeros((0, width), dtype=kinds.get(precision or "", np.float32))
        if isinstance(result, Tensor):
            return torch.zeros(0, width, device=result.device)
        return result

    def _inference(self, inputs: list[Any], **kwargs: Any) -> Any:
        check_texts(inputs)
        if kwargs["output_value"] == "token_embeddings":
            raise RecipeError(
                "output_value='token_embeddings': a recipe reads one vector a text and keeps nothing of single tokens"
            )
        if kwargs["output_value"] is None:
            items: Any = super()._inference(inputs, **kwargs)
            if items:
                check_finite(torch.stack([item["sentence_embedding"] for item in items]), self.reader)
            return items
        return self._finish(*self._embed(inputs, **kwargs))

    @torch.inference_mode()
    def _embed(
        self,
        texts: list[str],
        *,
        prompt: str | None,
        show_progress_bar: bool,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        task: str | None = None,
        batch_size: int = 0,
        output_value: str | None = None,
        processing_kwargs: Any = None,
    ) -> tuple[Tensor, EncodeReport]:
        """Vectors ``[b, width]`` of texts that are known to be texts, and what was done to get them."""
        if processing_kwargs is not None:
            raise InputError("processing_kwargs cannot be used: texts are cut by max_tokens, see load()")
        target = self._resolve_inference_device(device)
        self.eval()
        arrivals = Arrivals(len(texts), "cpu" if save_to_cpu else target)
        tokens = truncated = reused = 0
        characters = [len(text) for text in texts]
        left, started = sum(characters), time.perf_counter()
        with tqdm(total=len(texts), desc="Texts", unit="text", disable=not show_progress_bar) as bar:
            for batch in self.reader.batches(texts, prompt, task):
                # The reader moves what it feeds: planned on the CPU, nothing waits for the device.
                vectors = self(batch.features)["sentence_embedding"]
                if truncate_dim is not None:
                    vectors = truncate_embeddings(vectors, truncate_dim)
                if normalize_embeddings:
                    vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
                arrivals.put(batch.rows, vectors)
                tokens += batch.tokens
                reused += batch.reused
                truncated += batch.truncated
                took, done = time.perf_counter() - started, sum(characters[row] for row in batch.rows)
                left, started = left - done, time.perf_counter()
                self.reader.has_taken(took, took * left / max(1, done))
                bar.update(len(batch.rows))
        blank = sum(not text.strip() for text in texts)
        return arrivals.all(), EncodeReport(len(texts), tokens, truncated, blank, reused)

    def _finish(self, vectors: Tensor, report: EncodeReport) -> Tensor:
        """Check what one call gave, and report it once."""
        check_finite(vectors, self.reader)
        self.report = report
        self._warn(report)
        return vectors

    def _multi_process(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        check_texts(inputs)
        if kwargs["output_value"] != "sentence_embedding":
            raise RecipeError(f"output_value={kwargs['output_value']!r} is not possible with several processes")
        self._reports: list[EncodeReport] = []
        vectors: Any = super()._multi_process(inputs, **kwargs)
        return self._finish(vectors, EncodeReport.total(self._reports)) if len(inputs) else vectors

    @classmethod
    def _multi_process_worker(cls, target_device: str, model: Any, input_queue: Any, results_queue: Any) -> None:
        """Embed chunks in a process of its own; rows are checked and warnings given where the whole call is known."""
        while True:
            chunk, texts, kwargs = input_queue.get()
            try:
                vectors, report = model._embed(texts, device=target_device, **kwargs)
                results_queue.put([chunk, (vectors.cpu(), report)])
            except Exception as error:
                results_queue.put(cls._report_worker_failure(chunk, error, target_device))

    def _get_worker_result(self, pool: Any, poll_interval: float = 1.0) -> Any:  # type: ignore[override]
        chunk, output = super()._get_worker_result(pool, poll_interval)
        if isinstance(output, Exception):
            return chunk, output
        vectors, report = output
        self._reports.append(report)
        return chunk, vectors

    def _warn(self, report: EncodeReport) -> None:
        if report.truncated:
            warnings.warn(
                f"{report.truncated} of {report.texts} texts were cut to fit max_tokens={self.reader.max_tokens} "
                "(prompt and template included); model.report counts them",
                TruncationWarning,
                stacklevel=_callers_level(),
            )
        if report.blank:
            warnings.warn(
                f"{report.blank} of {report.texts} texts are blank and were embedded as the template around nothing",
                BlankTextWarning,
                stacklevel=_callers_level(),
            )

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a card whose code works for someone who has never heard of this library; keep one written by hand."""
        loaded: str | None = getattr(self, "_model_card_text", None)
        card = cards.model_card(self) if loaded is None or cards.MARK in loaded else loaded
        (Path(path) / "README.md").write_text(card, encoding="utf-8")

    def _push_to_hub_usage_tip(self, repo_id: str) -> str:
        return f"Try this pull request before merging it:\n\n```python\n{cards.usage(repo_id, pull_request=True)}```\n"
