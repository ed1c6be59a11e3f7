"""The ``SentenceTransformer`` that ``load`` returns: what a module cannot know by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

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
from valuembed.execution import (
    EncodeReport,
    check_vectors,
    collect,
    cpu_memory,
    read_texts,
    read_token_vectors,
    warn_of,
)
from valuembed.models import calibration, model_card
from valuembed.models.checks import comparable, no_rows, processing_refused
from valuembed.models.text_encoder import PROMPT_NAMES
from valuembed.models.value_transformer import ValueTransformer
from valuembed.recipes import Recipe, check_takes_tokens
from valuembed.tokenization import NO_LIMIT

_NOT_GIVEN: Any = object()

_OF_ENCODE = signature(SentenceTransformer.encode)


def _check_wanted(output_value: str | None, truncate_dim: Any) -> None:
    if output_value not in ("sentence_embedding", "token_embeddings", None):
        raise RecipeError(
            f"output_value={output_value!r} is unknown; legal: 'sentence_embedding', 'token_embeddings', and None for "
            "all that the modules give"
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
    _placed: tuple[Any, ...] = ()

    @property
    def reader(self) -> ValueTransformer:
        """The module that reads the decoder."""
        return cast(ValueTransformer, self[0])

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
            ``[b, width]`` float32; ``(0, width)`` for no texts. With ``output_value="token_embeddings"`` for each text
            a tensor ``[t, width]`` of its own tokens, those of template and prompt left out, before the modules after
            the reader.

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
        width = min(self.get_embedding_dimension() or 0, asked.get("truncate_dim") or NO_LIMIT)
        return no_rows(result, width, asked.get("precision"))

    @torch.no_grad()
    @default_device_and_precision()
    def encode_parts(
        self,
        inputs: Any,
        spans: Any = None,
        *,
        chunk_tokens: int | None = None,
        overlap: int = 0,
        context: int | None = None,
        task: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress_bar: bool | None = False,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embed parts of texts, each text run as a whole (late chunking, arXiv 2409.04701).

        A part's vector is the mean over its own tokens, which have seen all of the text before them. A text costs about
        its tokens, however many parts it has. One that is longer than the model takes is run in windows that overlap.

        Args:
            inputs: a text or b texts, as in :meth:`encode`, of any length.
            spans: of each text the parts, ``(start, end)`` in characters; they may overlap. Of one text, its list.
            chunk_tokens: cut each text into chunks of so many tokens at most, in place of ``spans``.
            overlap: tokens at the end of a chunk that the next one repeats.
            context: tokens of the text that a part sees in front of it at least, where the text is run in windows. None
                is a quarter of a window, less for a part that needs the room.
            task: ``"document"`` or ``"query"``: whose template, and prompt where none is given.
            prompt_name, prompt, show_progress_bar, convert_to_tensor, device, normalize_embeddings, truncate_dim: as in
                :meth:`encode`.

        Returns:
            A :class:`valuembed.models.TextParts` for each text, or the one of a single text.

        Raises:
            RecipeError: the recipe has no vector of a part, as those that read the last token.
            InputError: no texts, or parts that are not in their text, have no token, or are too long for a window.
            NotFiniteError: an embedding is not finite, with its row.
        """
        self.report = None
        given = as_text(inputs)
        single = isinstance(given, str)
        texts = [given] if single else as_texts(given)
        check_texts(texts, max_bytes=None)
        truncate_dim = self.truncate_dim if truncate_dim is None else truncate_dim
        _check_wanted(None, truncate_dim)
        if prompt is None and prompt_name is None:
            prompt_name = next((name for name in PROMPT_NAMES.get(task or "", ()) if name in self.prompts), None)
        target, reader = self._ready(device), self.reader
        found, self.report = reader.read_parts(
            texts,
            reader.find_parts(texts, [spans] if single and spans is not None else spans, chunk_tokens, overlap),
            role=task,
            prompt=self._resolve_prompt(prompt, prompt_name),
            context=context,
            finish=self._finishing(truncate_dim, normalize_embeddings),
            device=target if convert_to_tensor else "cpu",
            show_progress_bar=bool(show_progress_bar),
        )
        if not convert_to_tensor:
            found = [replace(of_text, vectors=of_text.vectors.numpy()) for of_text in found]
        return found[0] if single else found

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
        return super().similarity(*comparable(self.get_embedding_dimension() or 0, embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """As :meth:`similarity`, of each vector with the one in its place: ``[b]``."""
        return super().similarity_pairwise(*comparable(self.get_embedding_dimension() or 0, embeddings1, embeddings2))

    def _inference(self, inputs: list[Any], **kwargs: Any) -> Any:
        check_texts(inputs)
        _check_wanted(kwargs["output_value"], kwargs["truncate_dim"])
        if kwargs["output_value"] is None:
            items: Any = super()._inference(inputs, **kwargs)
            if items:
                check_vectors(torch.stack([item["sentence_embedding"] for item in items]), self.reader.model.dtype)
            return items
        if kwargs["output_value"] == "token_embeddings":
            return self._embed_tokens(inputs, **kwargs)
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
            raise processing_refused()
        target, reader = self._ready(device), self.reader
        finished = self._finishing(truncate_dim, normalize_embeddings)

        def finish(vectors: list[Tensor]) -> list[Tensor]:
            return [finished(vectors[0])]

        with torch.inference_mode(), text_bar(len(texts), show_progress_bar) as bar:
            results = read_texts(
                reader.executor, reader.texts, texts, [reader.plan],
                role=task, prompt=prompt, max_tokens=reader.max_tokens,
            )  # fmt: skip
            found, report = collect(results, texts, "cpu" if save_to_cpu else target, finish, bar)
        return (found[0] if found else torch.empty(0, 0)), report

    def _embed_tokens(
        self,
        texts: list[str],
        *,
        prompt: str | None,
        show_progress_bar: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        task: str | None = None,
        processing_kwargs: Any = None,
        **others: Any,
    ) -> list[Tensor]:
        """For each text ``[t, width]`` of its own tokens, before the modules after the reader."""
        if processing_kwargs is not None:
            raise processing_refused()
        self._ready(device)
        reader = self.reader
        check_takes_tokens(reader.recipe, task)
        finish = self._finishing(truncate_dim, normalize_embeddings, later_modules=False)
        with torch.inference_mode(), text_bar(len(texts), show_progress_bar) as bar:
            found, report = read_token_vectors(
                reader.executor, reader.texts, texts, reader.plan,
                role=task, prompt=prompt, max_tokens=reader.max_tokens, finish=finish, bar=bar,
            )  # fmt: skip
        if texts:
            self._finish(torch.stack([of_text.sum()[None] for of_text in found]), report)
        return found

    def _ready(self, device: str | torch.device | None) -> torch.device:
        """Where to compute, with all modules there and none of them in training."""
        target = self._resolve_inference_device(device)
        if self.training or self.reader.training or self.reader.model.training:
            self.eval()
        return target

    def _finishing(
        self, truncate_dim: int | None, normalize_embeddings: bool, later_modules: bool = True
    ) -> Callable[[Tensor], Tensor]:
        """From raw vectors ``[b, width]`` to those that a call returns."""

        def finish(vectors: Tensor) -> Tensor:
            last = self.through_later_modules(vectors) if later_modules else vectors
            if truncate_dim is not None:
                last = truncate_embeddings(last, truncate_dim)
            return torch.nn.functional.normalize(last, p=2, dim=1) if normalize_embeddings else last

        return finish

    def through_later_modules(self, vectors: Tensor) -> Tensor:
        """What the modules after the reader make of its vectors ``[b, width]``, such as a calibration."""
        features: dict[str, Any] = {"sentence_embedding": vectors}
        for module in list(self)[1:]:
            features = module(features)
        last: Tensor = features["sentence_embedding"]
        return last

    def _finish(self, vectors: Tensor, report: EncodeReport) -> Tensor:
        """Check what one call gave, and report it once."""
        check_vectors(vectors, self.reader.model.dtype)
        self.report = report
        if report.truncated or report.blank:
            warn_of(report, self.reader.max_tokens)
        return vectors

    def _resolve_inference_device(self, device: int | str | torch.device | None) -> torch.device:
        asked = check_device(device)
        # Looking at every tensor takes longer than tokenizing, and what was placed together is moved together.
        if self._placed[:-1] != (self.device, asked, *map(id, self)):
            target = super()._resolve_inference_device(asked)
            self._placed = (self.device, asked, *map(id, self), target)
        return self._placed[-1]  # type: ignore[no-any-return]

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
