"""The ``SentenceTransformer`` that ``load`` returns: what a module cannot know by itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch import Tensor
from tqdm.auto import tqdm

from valuembed import cards
from valuembed.batching import plan_steps, rope_groups
from valuembed.errors import ReadingError, RecipeError
from valuembed.module import ValueTransformer, check_texts
from valuembed.recipes import Recipe

TEXTS_PER_WINDOW = 8192
"""Texts that are tokenized and sorted together: enough to keep padding small, few enough to keep memory flat."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes and lost their ends."""


class BlankTextWarning(UserWarning):
    """Blank texts were embedded as the template around nothing."""


@dataclass(frozen=True)
class EncodeReport:
    """What one ``encode`` call did.

    Attributes:
        texts: how many texts came in.
        tokens: tokens of the sequences that were fed, templates included.
        truncated: texts that lost tokens of their end.
        blank: texts without a visible character.
    """

    texts: int
    tokens: int
    truncated: int
    blank: int


class ValueEncoder(SentenceTransformer):
    """A ``SentenceTransformer`` whose first module reads attention values.

    It adds what a module cannot know: row numbers in errors, one report a call (:attr:`report`), and steps cut by
    tokens
    over the whole input. A plain ``SentenceTransformer`` on the saved folder gives the same vectors.
    """

    _module_classes: Mapping[str, type[torch.nn.Module]] = {"valuembed.module.ValueTransformer": ValueTransformer}
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

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``SentenceTransformer.encode``; steps are cut by tokens, so ``batch_size`` decides nothing.

        Args:
            inputs: a text or b texts.
            args, kwargs: as in sentence-transformers.

        Returns:
            ``[b, width]`` float32; ``(0, width)`` for no texts.

        Raises:
            InputError: something that is not a text, with its row.
            ReadingError: an embedding is not finite, with its row.
        """
        result = super().encode(inputs, *args, **kwargs)
        if isinstance(inputs, (str, dict)) or not hasattr(inputs, "__len__") or len(inputs):
            return result
        self.report = EncodeReport(0, 0, 0, 0)
        return self._no_rows(result, kwargs.get("truncate_dim"), kwargs.get("precision"))

    def _no_rows(self, result: Any, truncate_dim: int | None, precision: str | None) -> Any:
        width = truncate_dim or self.get_embedding_dimension() or 0
        kinds = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
        if precision in ("binary", "ubinary"):
            width = -(-width // 8)
        if isinstance(result, np.ndarray):
            return np.zeros((0, width), dtype=kinds.get(precision or "", np.float32))
        if isinstance(result, Tensor):
            return torch.zeros(0, width, device=result.device)
        return result

    @torch.inference_mode()
    def _inference(  # type: ignore[override]
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if output_value == "token_embeddings":
            raise RecipeError(
                "output_value='token_embeddings': a recipe reads one vector a text and keeps none of its tokens'"
            )
        check_texts(inputs)
        if output_value is None:
            kwargs.update(save_to_cpu=save_to_cpu, normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim)
            return super()._inference(
                inputs,
                prompt=prompt,
                show_progress_bar=show_progress_bar,
                output_value=None,
                device=device,
                task=task,
                **kwargs,
            )
        target = self._resolve_inference_device(device)
        self.eval()
        width = truncate_dim or self.reader.get_embedding_dimension()
        result = torch.empty(len(inputs), width, device="cpu" if save_to_cpu else target)
        tokens = truncated = 0
        with tqdm(total=len(inputs), desc="Texts", unit="text", disable=not show_progress_bar) as bar:
            for start in range(0, len(inputs), TEXTS_PER_WINDOW):
                window = inputs[start : start + TEXTS_PER_WINDOW]
                rows = self.reader.tokenize_texts(window, prompt, task)
                lengths = [max(len(row.ids) for row in of_text) for of_text in zip(*rows, strict=True)]
                tokens += sum(len(row.ids) for of_template in rows for row in of_template)
                truncated += sum(any(row.truncated for row in of_text) for of_text in zip(*rows, strict=True))
                budget = max(1, self.reader.tokens_per_step // len(rows))
                for step in plan_steps(lengths, budget, rope_groups(self.reader.model)):
                    features = batch_to_device(self.reader.features([[part[i] for i in step] for part in rows]), target)
                    vectors = self(features)["sentence_embedding"]
                    if truncate_dim is not None:
                        vectors = truncate_embeddings(vectors, truncate_dim)
                    if normalize_embeddings:
                        vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
                    result[[start + i for i in step]] = vectors.to(result.device)
                    bar.update(len(step))
                self._check_finite(result[start : start + len(window)], start)
        blank = sum(not text.strip() for text in inputs)
        self.report = EncodeReport(len(inputs), tokens, truncated, blank)
        self._warn(self.report)
        return result

    def _check_finite(self, vectors: Tensor, start: int) -> None:
        bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            rows = ", ".join(str(start + row) for row in bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise ReadingError(
                f"the embedding of {len(bad)} texts is not finite (NaN or infinite): rows {rows}; the weights are "
                "damaged or "
                f"{self.reader.model.dtype} overflows in this model, try dtype='float32'"
            )

    def _warn(self, report: EncodeReport) -> None:
        if report.truncated:
            warnings.warn(
                f"{report.truncated} of {report.texts} texts were cut to fit max_tokens={self.reader.max_tokens} "
                "(prompt and template "
                "included); model.report counts them",
                TruncationWarning,
                stacklevel=5,
            )
        if report.blank:
            warnings.warn(
                f"{report.blank} of {report.texts} texts are blank and were embedded as the template around nothing",
                BlankTextWarning,
                stacklevel=5,
            )

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a card whose code works for someone who has never heard of this library."""
        (Path(path) / "README.md").write_text(cards.model_card(self), encoding="utf-8")
