"""A reader that embeds texts by itself, for those who wait: sentence-transformers alone takes seconds to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from valuembed._utils.devices import default_device
from valuembed._utils.progress import text_bar
from valuembed._utils.torch_settings import building, default_device_and_precision
from valuembed.backbone import LoadKwargs, LoadOptions, compute_dtype_of
from valuembed.backbone.checkpoints import locate, saved_config
from valuembed.data import as_text, as_texts, check_texts
from valuembed.execution import CompileChoice, EncodeReport, check_vectors, collect, read_texts, warn_of
from valuembed.models.centring import centre_reader
from valuembed.models.reader_loading import load_reader
from valuembed.models.recipe_choice import DEFAULT_METHOD
from valuembed.models.value_reader import TextParts, ValueReader
from valuembed.recipes import LayerSpec, Recipe, TemplateSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names of a role's instruction among a model's prompts, as sentence-transformers looks for them."""


class TextEncoder:
    """What a verb needs of a model (see :class:`valuembed.vectors.Encoder`), and no ``SentenceTransformer``.

    Args:
        reader: of the decoder.
        prompts: instructions by name.
        default_prompt_name: the one of them that is used where no role is named.
    """

    def __init__(self, reader: ValueReader, prompts: Mapping[str, str], default_prompt_name: str | None = None) -> None:
        self.reader = reader.eval()
        self.prompts = dict(prompts)
        self.default_prompt_name = default_prompt_name
        self.report: EncodeReport | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe that is read, its layers absolute."""
        return self.reader.recipe

    @property
    def compute_dtype(self) -> str:
        """What is computed in, and what the weights are kept in where that is something else."""
        return compute_dtype_of(self.reader.model)

    @property
    def max_seq_length(self) -> int | None:
        """The longest sequence that is fed, template included."""
        return self.reader.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.reader.get_embedding_dimension()

    def encode(self, inputs: Any, *, show_progress_bar: bool | None = False) -> NDArray[np.float32]:
        """Embed texts that are compared with each other.

        Args:
            inputs: a text or b texts.
            show_progress_bar: on stderr.

        Returns:
            ``[width]`` or ``[b, width]`` float32, of length 1.

        Raises:
            InputError: something that is not a text, with its row.
            NotFiniteError: an embedding is not finite, with its row.
        """
        return self._encode(inputs, None, show_progress_bar)

    def encode_query(self, inputs: Any, *, show_progress_bar: bool | None = False) -> NDArray[np.float32]:
        """Embed texts that ask; as :meth:`encode`."""
        return self._encode(inputs, "query", show_progress_bar)

    def encode_document(self, inputs: Any, *, show_progress_bar: bool | None = False) -> NDArray[np.float32]:
        """Embed texts that are searched; as :meth:`encode`."""
        return self._encode(inputs, "document", show_progress_bar)

    @default_device_and_precision()
    def encode_parts(
        self, inputs: Any, spans: Any, *, task: str | None = None, show_progress_bar: bool | None = False
    ) -> list[TextParts]:
        """Embed parts of texts, each text run as a whole; see :meth:`valuembed.ValueEncoder.encode_parts`.

        Args:
            inputs: b texts.
            spans: for each text its parts, in characters.
            task: ``"query"`` or ``"document"``: whose template and instruction.
            show_progress_bar: on stderr.

        Returns:
            For each text its parts, vectors ``[p, width]`` float32, of length 1.

        Raises:
            RecipeError, InputError, NotFiniteError: as there.
        """
        self.report = None
        texts = as_texts(inputs)
        check_texts(texts, max_bytes=None)
        found, self.report = self.reader.read_parts(
            texts, self.reader.find_parts(texts, spans), role=task, prompt=self._prompt(task),
            finish=lambda vectors: normalize(vectors, p=2, dim=1), show_progress_bar=bool(show_progress_bar),
        )  # fmt: skip
        return [replace(of_text, vectors=of_text.vectors.numpy()) for of_text in found]

    @default_device_and_precision()
    def _encode(self, inputs: Any, role: str | None, show_progress_bar: bool | None) -> NDArray[np.float32]:
        self.report = None
        given = as_text(inputs)
        texts = [given] if isinstance(given, str) else as_texts(given)
        check_texts(texts)
        reader = self.reader
        with torch.inference_mode(), text_bar(len(texts), bool(show_progress_bar)) as bar:
            results = read_texts(
                reader.executor, reader.texts, texts, [reader.plan],
                role=role, prompt=self._prompt(role), max_tokens=reader.max_tokens,
            )  # fmt: skip
            read, report = collect(results, texts, "cpu", _finish, bar)
        vectors = read[0] if read else torch.empty(0, 0)
        check_vectors(vectors, reader.model.dtype)
        self.report = report
        warn_of(report, self.max_seq_length)
        found: NDArray[np.float32] = vectors.reshape(len(texts), self.get_embedding_dimension()).numpy()
        return found[0] if isinstance(given, str) else found

    def _prompt(self, role: str | None) -> str | None:
        # With a role but no instruction for it, the default one is used; sentence-transformers' own empty ones count.
        names = (*PROMPT_NAMES.get(role or "", ()), self.default_prompt_name)
        return next((self.prompts[name] for name in names if name in self.prompts), None)


def _finish(vectors: list[Tensor]) -> list[Tensor]:
    return [normalize(read, p=2, dim=1) for read in vectors]


@default_device_and_precision()
def load_text_encoder(
    model: str | os.PathLike[str] = "bundled",
    method: str | Recipe | Mapping[str, Any] = DEFAULT_METHOD,
    layers: LayerSpec = None,
    template: TemplateSpec | Mapping[str, TemplateSpec] = "auto",
    cleaning: str | None = None,
    *,
    compile: CompileChoice = False,
    **options: Unpack[LoadKwargs],
) -> TextEncoder | None:
    """Load a model for texts alone.

    Args:
        model, method, layers, template, cleaning, compile, options: as in :func:`valuembed.load`.

    Returns:
        None for a folder saved by this library: what it holds beside the reader is sentence-transformers' to load.
    """
    chosen = LoadOptions.of(options, load_text_encoder)
    if saved_config(locate(model, options=chosen)) is not None:
        return None
    loaded = load_reader(ValueReader, model, method, layers, template, cleaning, options=chosen, compile=compile)
    with building():
        reader = loaded.reader.to(loaded.device or default_device())
    centre_reader(reader, loaded.checkpoint)
    # A SentenceTransformer has these two in any case.
    prompts = {"query": "", "document": "", **loaded.settings.prompts}
    return TextEncoder(reader, prompts, loaded.settings.default_prompt_name)
