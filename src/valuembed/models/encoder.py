"""The ``SentenceTransformer`` that ``load`` returns: what a module cannot know by itself."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import truncate_embeddings
from torch import Tensor

from valuembed._utils.devices import check_device
from valuembed._utils.progress import text_bar
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import compute_dtype_of
from valuembed.backbone.checkpoints import (
    CALIBRATION_TYPE,
    EARLY_CALIBRATION_TYPE,
    EARLY_TRANSFORMER_TYPE,
    TRANSFORMER_TYPE,
)
from valuembed.data import as_text, as_texts, check_texts
from valuembed.errors import InputError, RecipeError
from valuembed.execution import EncodeReport, collect, cpu_memory, not_finite_error, read_texts, warn_of
from valuembed.models import calibration, model_card
from valuembed.models.value_transformer import ValueTransformer
from valuembed.recipes import Recipe
from valuembed.tokenization import NO_LIMIT

_NOT_GIVEN: Any = object()

_OF_ENCODE = signature(SentenceTransformer.encode)


def _as_tensor(vectors: Any) -> Tensor:
    """A tensor of vectors that came as a tensor, an array, a list of either, or a list of numbers."""
    if isinstance(vectors, Tensor):
        return vectors
    listed = isinstance(vectors, (list, tuple)) and len(vectors) > 0
    try:
        if listed and isinstance(vectors[0], Tensor):
            return torch.stack(list(vectors))
        has_dtype = isinstance(vectors, np.ndarray) or (listed and isinstance(vectors[0], np.ndarray))
        return torch.tensor(np.asarray(vectors, None if has_dtype else np.float32))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"similarity() compares vectors of one width, and cannot read {vectors!r:.80} as such; encode texts first"
        ) from error


def _check_wanted(output_value: str | None, truncate_dim: Any) -> None:
    if output_value == "token_embeddings":
        raise RecipeError(
            "output_value='token_embeddings': a recipe reads one vector a text and keeps nothing of single tokens"
        )
    if output_value not in ("sentence_embedding", None):
        raise RecipeError(
            f"output_value={output_value!r} is unknown; legal: 'sentence_embedding', and None for all that the "
            "modules give"
        )
    whole = isinstance(truncate_dim, (int, np.integer)) and not isinstance(truncate_dim, bool)
    if truncate_dim is not None and (not whole or truncate_dim < 1):
        raise InputError(f"truncate_dim={truncate_dim!r} has to be a whole number of at least 1")


class ValueEncoder(SentenceTransformer):
    """A ``SentenceTransformer`` whose first module reads attention values.

    It adds what a module cannot know: row numbers in errors, one report a call (:attr:`report`), and steps cut
    by tokens over the whole input. A plain ``SentenceTransformer`` on the saved folder gives the same vectors, up to
    rounding.
    """

    _module_classes: Mapping[str, type[torch.nn.Module]] = {
        **dict.fromkeys((TRANSFORMER_TYPE, EARLY_TRANSFORMER_TYPE), ValueTransformer),
        **dict.fromkeys((CALIBRATION_TYPE, EARLY_CALIBRATION_TYPE), calibration.Calibration),
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
    def compute_dtype(self) -> str:
        """What is computed in, and what the weights are kept in where that is something else."""
        return compute_dtype_of(self.reader.model)

    @torch.no_grad()
    @default_device_and_precision()
    def encode(self, inputs: Any = _NOT_GIVEN, *args: Any, sentences: Any = _NOT_GIVEN, **kwargs: Any) -> Any:
        """As ``SentenceTransformer.encode``; steps are cut by tokens, so ``batch_size`` decides nothing.

        Args:
            inputs: a text or b texts, in anything that holds them in an order, see :func:`valuembed.data.as_texts`.
            args, kwargs: as in sentence-transformers.
            sentences: what ``inputs`` was called there before.

        Returns:
            ``[b, width]`` float32; ``(0, width)`` for no texts.

        Raises:
            InputError: something that is not a text, or that has no embedding in this model, with its row; or no list.
            RecipeError: an ``output_value`` that a recipe cannot give.
            DeviceError: ``device`` is one that this machine does not have.
            NotFiniteError: an embedding is not finite, with its row.
        """
        self.report = None
        if (inputs is _NOT_GIVEN) == (sentences is _NOT_GIVEN):
            raise InputError("encode() takes texts once, as inputs or by its older name sentences")
        given = as_text(sentences if inputs is _NOT_GIVEN else inputs)
        texts = given if isinstance(given, str) else as_texts(given)
        result = super().encode(texts, *args, **kwargs)
        if isinstance(texts, str) or texts:
            return result
        self.report = EncodeReport(0, 0, 0, 0)
        asked = _OF_ENCODE.bind(self, texts, *args, **kwargs).arguments
        return self._no_rows(result, asked.get("truncate_dim"), asked.get("precision"))

    def is_singular_input(self, inputs: Any) -> bool:  # type: ignore[override]
        """Whether what is given is one text."""
        return isinstance(inputs, str)

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> Any:
        """As ``SentenceTransformer.preprocess``, of a text or b texts in whatever :meth:`encode` takes."""
        given = as_text(inputs)
        return super().preprocess([given] if isinstance(given, str) else as_texts(given), prompt=prompt, **kwargs)

    def forward(self, input: Any, **kwargs: Any) -> Any:
        """As in sentence-transformers, of features; texts go to :meth:`encode`.

        Raises:
            InputError: no features.
        """
        if not isinstance(input, Mapping):
            raise InputError(
                f"{type(input).__name__} where features are expected: a model is called with what preprocess() gives; "
                "encode() gives the vectors of texts"
            )
        return super().forward(input, **kwargs)  # type: ignore[arg-type]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """As ``SentenceTransformer.similarity``, of vectors in any precision but packed bits.

        Args:
            embeddings1, embeddings2: arrays, tensors or lists of numbers, ``[a, width]`` and ``[b, width]``.

        Returns:
            ``[a, b]``.

        Raises:
            InputError: they are no vectors, or packed bits.
        """
        return super().similarity(*self._comparable(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """As :meth:`similarity`, of each vector with the one in its place: ``[b]``."""
        return super().similarity_pairwise(*self._comparable(embeddings1, embeddings2))

    def _comparable(self, *given: Any) -> list[Tensor]:
        """Vectors as tensors of one floating dtype."""
        found = [_as_tensor(vectors) for vectors in given]
        width = self.get_embedding_dimension() or 0
        for tensor in found:
            if tensor.dtype in (torch.int8, torch.uint8) and tensor.shape[-1] == -(-width // 8) < width:
                raise InputError(
                    f"similarity() cannot compare packed bits: vectors of {tensor.shape[-1]} bytes hold {width} "
                    "bits; count the bits that differ, or encode with precision='float32' or 'int8'"
                )
        floating = [tensor if tensor.is_floating_point() else tensor.float() for tensor in found]
        dtype = torch.promote_types(floating[0].dtype, floating[1].dtype)
        return [tensor.to(dtype) for tensor in floating]

    def _no_rows(self, result: Any, truncate_dim: int | None, precision: str | None) -> Any:
        width = min(self.get_embedding_dimension() or 0, truncate_dim or NO_LIMIT)
        kinds = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
        if precision in ("binary", "ubinary"):
            width = -(-width // 8)
        if isinstance(result, np.ndarray):
            return np.zeros((0, width), dtype=kinds.get(precision or "", np.float32))
        if isinstance(result, Tensor):
            return torch.zeros(0, width, dtype=torch.float32, device=result.device)
        return result

    def _inference(self, inputs: list[Any], **kwargs: Any) -> Any:
        check_texts(inputs)
        _check_wanted(kwargs["output_value"], kwargs["truncate_dim"])
        if kwargs["output_value"] is None:
            items: Any = super()._inference(inputs, **kwargs)
            if items:
                self._check_finite(torch.stack([item["sentence_embedding"] for item in items]))
            return items
        return self._finish(*self._embed(inputs, **kwargs))

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
        reader = self.reader
        if self.training or reader.training or reader.model.training:
            self.eval()

        def finish(vectors: list[Tensor]) -> list[Tensor]:
            last = self.through_later_modules(vectors[0])
            if truncate_dim is not None:
                last = truncate_embeddings(last, truncate_dim)
            return [torch.nn.functional.normalize(last, p=2, dim=1) if normalize_embeddings else last]

        with torch.inference_mode(), text_bar(len(texts), show_progress_bar) as bar:
            results = read_texts(
                reader.executor, reader.texts, texts, [reader.plan],
                role=task, prompt=prompt, max_tokens=reader.max_tokens,
            )  # fmt: skip
            found, report = collect(results, texts, "cpu" if save_to_cpu else target, finish, bar)
        return (found[0] if found else torch.empty(0, 0)), report

    def through_later_modules(self, vectors: Tensor) -> Tensor:
        """What the modules after the reader make of its vectors ``[b, width]``, such as a calibration."""
        features: dict[str, Any] = {"sentence_embedding": vectors}
        for module in list(self)[1:]:
            features = module(features)
        last: Tensor = features["sentence_embedding"]
        return last

    def _finish(self, vectors: Tensor, report: EncodeReport) -> Tensor:
        """Check what one call gave, and report it once."""
        self._check_finite(vectors)
        self.report = report
        if report.truncated or report.blank:
            warn_of(report, self.reader.max_tokens)
        return vectors

    def _check_finite(self, vectors: Tensor) -> None:
        if not torch.isfinite(vectors).all():
            raise not_finite_error(vectors, self.reader.model.dtype)

    def _resolve_inference_device(self, device: int | str | torch.device | None) -> torch.device:
        return super()._resolve_inference_device(check_device(device))

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> Any:
        """As ``SentenceTransformer.start_multi_process_pool``; devices that are not there are told before it starts.

        Args:
            target_devices: one for each process.

        Raises:
            DeviceError: this machine does not have one of them.
        """
        for device in target_devices or ():
            check_device(device)
        return super().start_multi_process_pool(target_devices)

    def _multi_process(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        check_texts(inputs)
        _check_wanted(kwargs["output_value"], kwargs["truncate_dim"])
        if kwargs["output_value"] != "sentence_embedding":
            raise RecipeError(f"output_value={kwargs['output_value']!r} is not possible with several processes")
        self._reports: list[EncodeReport] = []
        vectors: Any = super()._multi_process(inputs, **kwargs)
        return self._finish(vectors, EncodeReport.total(self._reports)) if len(inputs) else vectors

    @classmethod
    def _multi_process_worker(cls, target_device: str, model: Any, input_queue: Any, results_queue: Any) -> None:
        """Embed chunks in a process of its own; rows are checked and warnings given where the whole call is known."""
        cpu_memory.tune_memory()
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

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a card whose code works for someone who has never heard of this library; keep one written by hand."""
        loaded: str | None = getattr(self, "_model_card_text", None)
        card = model_card.model_card(self) if loaded is None or model_card.MARK in loaded else loaded
        (Path(path) / "README.md").write_text(card, encoding="utf-8")

    def _push_to_hub_usage_tip(self, repo_id: str) -> str:
        usage = model_card.usage(repo_id, pull_request=True)
        return f"Try this pull request before merging it:\n\n```python\n{usage}```\n"
