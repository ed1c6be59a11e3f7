"""A decoder with its tokenizer and what is read from it: what every kind of model is built around."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valuembed._utils.loading_line import LINE
from valuembed._utils.progress import text_bar
from valuembed._utils.text import counted
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import (
    Plan,
    adapters,
    check_model_kwargs,
    embedding_rows,
    holds_quantized,
    load_decoder,
    parse_dtype,
    prepare,
)
from valuembed.backbone.checkpoints import Checkpoint, LoadedFrom, Origin, find_origin
from valuembed.errors import InputError, UnsupportedModelError, VocabularyWarning
from valuembed.execution import EncodeReport, Executor, check_vectors, read_parts, use_int8_products
from valuembed.models.centring import general_sentences, saved_means
from valuembed.readout import install_attention_hooks
from valuembed.recipes import Recipe, check_takes_parts, describe, preset_for
from valuembed.tokenization import (
    Cutter,
    TextTokenizer,
    TokenSequence,
    check_template,
    lacking,
    load_tokenizer,
    token_limit,
)


@dataclass(frozen=True)
class TextParts:
    """Vectors of p parts of one text, from one pass over it.

    Attributes:
        vectors: ``[p, width]`` float32, an array or a tensor, in the order of the parts.
        spans: of each part where it starts and ends in the text, in characters.
        tokens: of each part, over how many tokens its vector is the mean.
    """

    vectors: Any
    spans: list[tuple[int, int]]
    tokens: list[int]


class ValueReader(nn.Module):
    """Holds what reads one vector a text from a decoder, as a recipe says.

    Texts go through :func:`valuembed.execution.read_texts` with its executor and tokenizer.

    Args:
        model: the decoder, cut or whole, with attention hooks.
        tokenizer: the model's.
        plan: what to read; its recipe holds absolute layers.
        origin: where the decoder comes from.
        max_tokens: the longest sequence that is fed; None for no limit.
        loaded_from: what was loaded, which may be an adapter on that decoder; None where nothing was.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        origin: Origin,
        max_tokens: int | None,
        loaded_from: LoadedFrom | None = None,
    ) -> None:
        # Not through the classes between: a sentence-transformers module loads in its constructor.
        nn.Module.__init__(self)
        self.processor = tokenizer
        self.model = model
        self.plan = plan
        self.origin = origin
        self.loaded_from = loaded_from
        self.max_tokens = max_tokens
        self.executor = Executor(model, plan)
        self.texts = TextTokenizer(tokenizer, partial(embedding_rows, model))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # A wrapper that is put around the decoder, or taken off, is what steps run through.
        if name == "model" and "executor" in self.__dict__:
            self.executor.model = value

    @property
    def recipe(self) -> Recipe:
        """The recipe, its layers absolute."""
        return self.plan.recipe

    @property
    def max_seq_length(self) -> int | None:
        """The longest sequence that is fed, prompt and template included."""
        return self.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.max_tokens = token_limit(value, self.processor, self.model.config)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.plan.width

    def tokenize_texts(
        self,
        texts: Sequence[str],
        prompt: str | None,
        role: str | None,
        max_tokens: int | None = None,
        recipe: Recipe | None = None,
    ) -> list[list[TokenSequence]]:
        """Tokenize texts in a recipe's templates.

        Args:
            texts: b texts.
            prompt: an instruction, or None.
            role: ``"query"``, ``"document"`` or None: whose templates.
            max_tokens: a limit for this call in place of the reader's.
            recipe: whose templates and cleaning; None is the reader's own.

        Returns:
            For each of the k templates, b sequences.

        Raises:
            InputError: an instruction that is no text.
            UnknownTokenError: texts with tokens for which the decoder has no embedding.
        """
        return self.texts.sequences(
            texts, recipe or self.recipe, role, prompt, max_tokens=max_tokens or self.max_tokens
        )

    def find_parts(
        self, texts: Sequence[str], spans: Any = None, chunk_tokens: int | None = None, overlap: int = 0
    ) -> list[list[tuple[int, int]]]:
        """Places of the parts of texts: those that are given, or chunks of so many tokens.

        Args:
            texts: b texts.
            spans: for each text its parts, in characters.
            chunk_tokens, overlap: as :class:`valuembed.tokenization.Cutter` takes them; in place of ``spans``.

        Returns:
            For each text ``(start, end)`` of its parts.

        Raises:
            RecipeError: the recipe has no vector of a part.
            InputError: neither or both are given, or ranges that are not in their text.
        """
        check_takes_parts(self.recipe, "encode_parts()")
        if (spans is None) == (chunk_tokens is None):
            raise InputError(
                "encode_parts() takes the parts of each text as spans=[[(start, end), ...], ...], or cuts it into "
                f"chunks of chunk_tokens={chunk_tokens}; give one of both"
            )
        if chunk_tokens is not None:
            cutter = Cutter(self.texts.tokenizer, chunk_tokens, overlap)
            return [[(chunk.start, chunk.end) for chunk in cutter.cut(text)] for text in texts]
        if overlap:
            raise InputError(f"overlap={overlap} belongs to chunk_tokens; spans may overlap as they are")
        try:
            given = [list(of_text) for of_text in spans]
        except TypeError as error:
            raise InputError(f"spans={spans!r:.80} is no list of (start, end) for each text") from error
        if len(given) != len(texts):
            raise InputError(
                f"spans of {counted(len(given), 'text')} for {counted(len(texts), 'text')}; give a list of (start, "
                "end) for each"
            )
        return [
            [_checked_range(part, text, f"text {row}, part {at}") for at, part in enumerate(of_text)]
            for row, (text, of_text) in enumerate(zip(texts, given, strict=True))
        ]

    def read_parts(
        self,
        texts: Sequence[str],
        parts: Sequence[Sequence[tuple[int, int]]],
        *,
        role: str | None = None,
        prompt: str | None = None,
        context: int | None = None,
        finish: Callable[[Tensor], Tensor] = lambda vectors: vectors,
        device: torch.device | str = "cpu",
        show_progress_bar: bool = False,
    ) -> tuple[list[TextParts], EncodeReport]:
        """Read the parts of texts, each text run as a whole.

        Args:
            texts: b texts, known to be texts.
            parts: as :meth:`find_parts` gives them.
            role, prompt: as in :meth:`tokenize_texts`.
            context, finish, device: as in :func:`valuembed.execution.read_parts`.
            show_progress_bar: on stderr.

        Returns:
            For each text its parts, vectors as tensors ``[p, width]``; and what was done.

        Raises:
            InputError: a part has no token or is too long for a window, or ``context`` is no number of tokens.
            NotFiniteError: a vector is not finite, with the rows of the texts.
        """
        if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 0):
            raise InputError(f"context={context!r} has to be a whole number of tokens, at least 0")
        with torch.inference_mode(), text_bar(sum(map(len, parts)), show_progress_bar, "part") as bar:
            read = read_parts(
                self.executor, self.texts, texts, parts, self.plan, role=role, prompt=prompt,
                max_tokens=self.max_tokens, context=context, finish=finish, device=device, bar=bar,
            )  # fmt: skip
        vectors = read.vectors
        if not vectors.numel():
            vectors = finish(vectors.new_zeros(0, self.get_embedding_dimension()).to(self.model.device)).to(device)
        by_text = torch.split(vectors, [len(of_text) for of_text in parts])
        if texts:
            # A row for each text, whatever its parts are.
            check_vectors(torch.stack([of_text.sum()[None] for of_text in by_text]), self.model.dtype)
        found = [TextParts(*of_text) for of_text in zip(by_text, map(list, parts), read.tokens, strict=True)]
        return found, read.report

    def check_templates(self, recipe: Recipe) -> None:
        """Raise where a recipe's template has tokens for which the decoder has no embedding.

        Args:
            recipe: all of whose templates are to be used.

        Raises:
            TemplateError: it names the token.
        """
        for template in dict.fromkeys(
            template for role in (None, "query", "document") for template in recipe.templates_for(role)
        ):
            check_template(template, embedding_rows(self.model), self.texts)

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"{type(self).__name__}({self.origin.name!r}, method={recipe.method!r}, "
            f"layers={describe(self.plan.layers) or 'final'!r}, "
            f"width={self.get_embedding_dimension()}, dtype={self.model.dtype})"
        )


SENTENCES_APART = 20
"""Of the general sentences every so many-th shows how large a decoder's channels are."""

Reader = TypeVar("Reader", bound=ValueReader)


def _checked_range(given: Any, text: str, name: str) -> tuple[int, int]:
    """A part's place in its text as two numbers."""
    try:
        start, end = (index(at) for at in given)
    except (TypeError, ValueError):
        start, end = 0, 0
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"{name}: {given!r} is no range of its {counted(len(text), 'character')}; give (start, end), the end not "
            "included and behind the start"
        )
    return start, end


def build(
    kind: type[Reader],
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    saved: dict[str, Any] | None = None,
    max_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    int8_products: bool = False,
) -> Reader:
    """Load a decoder cut for a recipe and make the module around it.

    Args:
        kind: of the module.
        checkpoint: where the model is.
        recipe: what to read.
        saved: what :func:`saved_config` says of the checkpoint.
        max_tokens: None is the model's own limit.
        dtype, device, model_kwargs: as in :func:`valuembed.load`.
        int8_products: compute the products of the layers in int8.

    Raises:
        UnsupportedModelError: products in int8 of weights that are quantized already, or of a decoder whose layers
            have no linear maps.
    """
    model_kwargs = check_model_kwargs(model_kwargs)
    dtype = dtype or parse_dtype(model_kwargs.pop("dtype", model_kwargs.pop("torch_dtype", None)))
    found = prepare(checkpoint, recipe, saved, dtype, device)
    base, plan = found.base, found.plan
    keep_tail = plan.recipe.reads_final_norm
    model = load_decoder(
        base,
        found.config,
        found.decoder_spec,
        keep_layers=plan.kept_layers,
        keep_tail=keep_tail,
        dtype=found.dtype,
        device=device,
        model_kwargs=model_kwargs,
    )
    install_attention_hooks(model, found.decoder_spec)
    if found.is_adapter:
        adapters.attach(model, checkpoint)
    tokenizer = load_tokenizer(checkpoint if checkpoint.file("tokenizer_config.json") else base)
    origin = find_origin(base, preset_for(found.config), found.decoder_spec, saved)
    limit = max_tokens if max_tokens is not None else (saved or {}).get("max_tokens")
    limit = token_limit(limit, tokenizer, found.config)
    LINE.end()
    if saved and plan.recipe == Recipe.from_dict(saved["recipe"]):
        plan = saved_means(plan, checkpoint)
    reader = kind(model, tokenizer, plan, origin, limit, checkpoint.loaded_from)
    reader.check_templates(plan.recipe)
    if int8_products:
        _use_int8_products(reader)
    if told := lacking(tokenizer, embedding_rows(model)):
        warnings.warn(f"model {checkpoint.name!r}: {told}", VocabularyWarning, stacklevel=3)
    return reader


@default_device_and_precision()
def _use_int8_products(reader: ValueReader) -> None:
    """Let a decoder compute its products in int8, smoothed by some of the general sentences."""
    if holds_quantized(reader.model):
        raise UnsupportedModelError(
            f"model {reader.origin.name!r} is quantized already, and dtype='int8' would round it once more; leave "
            "dtype out"
        )
    # Their vectors are of no use, so nothing is taken away from them, and nothing joined.
    plans = [replace(part, recipe=replace(part.recipe, centring="none"), mean=None) for part in reader.plan.parts]
    texts = zip(*reader.tokenize_texts(general_sentences()[::SENTENCES_APART], None, None), strict=True)
    batch = reader.executor.batch(list(texts))
    layers = reader.model.get_submodule(reader.plan.decoder_spec.layers_path)
    if not use_int8_products(layers, lambda: reader.executor.read(batch, plans)):
        raise UnsupportedModelError(
            f"model {reader.origin.name!r}: the layers of {reader.plan.decoder_spec.architecture} have no linear maps "
            "that could be computed in int8; leave dtype='int8' out"
        )
