"""Texts in, one vector a text out, read from inside the decoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valuembed._utils.loading_line import LINE
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import Plan, adapters, check_model_kwargs, embedding_rows, load_decoder, parse_dtype, prepare
from valuembed.backbone.checkpoints import Checkpoint, LoadedFrom, Origin, find_origin
from valuembed.data import check_prompt
from valuembed.errors import VocabularyWarning
from valuembed.execution import (
    Batch,
    Compiling,
    LayoutName,
    batches,
    packed_up_to,
    pad_right,
    prefix_unsupported_reason,
    read_within_memory,
    usual_step,
)
from valuembed.readout import install_attention_hooks
from valuembed.recipes import CLEANINGS, Recipe, describe, preset_for
from valuembed.tokenization import (
    TextTokenizer,
    TokenSequence,
    check_rows,
    check_template,
    lacking,
    load_tokenizer,
    token_limit,
)


class ValueReader(nn.Module):
    """Reads one vector a text from a decoder, as a recipe says.

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
        self._tokens_per_step: int | None = None
        self.layout: LayoutName = "auto"
        self.compiling = Compiling()
        self._packing: dict[object, int] = {}
        self._whole: dict[object, str | None] = {}
        self.texts = TextTokenizer(tokenizer)

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

    @property
    def tokens_per_step(self) -> int:
        """Padded tokens computed in one step: what suits the device, or less where memory did not suffice."""
        return self._tokens_per_step or usual_step(self.model.device)[0]

    @tokens_per_step.setter
    def tokens_per_step(self, value: int) -> None:
        self._tokens_per_step = value

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
            max_tokens: a limit for this call in place of the module's.
            recipe: whose templates and cleaning; None is the module's own.

        Returns:
            For each of the k templates, b rows.

        Raises:
            InputError: an instruction that is no text.
            UnknownTokenError: texts with tokens for which the decoder has no embedding.
        """
        check_prompt(prompt)
        recipe = recipe or self.recipe
        cleaned = [CLEANINGS[recipe.cleaning](text) for text in texts]
        found = []
        for template in recipe.templates_for(role):
            rows = self.texts.rows(cleaned, template, prompt or "", max_tokens=max_tokens or self.max_tokens)
            self.check_tokens(rows, template)
            found.append(rows)
        return found

    def check_tokens(self, rows: Sequence[TokenSequence], template: str) -> None:
        """Raise where tokens have no embedding.

        Args:
            rows: sequences of b texts in one template.
            template: that they were tokenized with.

        Raises:
            InputError, UnknownTokenError: as :func:`valuembed.tokenization.check_rows`.
        """
        check_rows(rows, embedding_rows(self.model), self.texts, template)

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

    def batches(
        self, texts: Sequence[str], prompt: str | None, role: str | None, recipe: Recipe | None = None
    ) -> Iterator[Batch]:
        """Texts cut into steps of a token budget, tokenized while earlier ones are computed.

        Args:
            texts: b texts, known to be texts.
            prompt, role, recipe: as in :meth:`tokenize_texts`.
        """
        return batches(self, texts, prompt, role, recipe or self.recipe)

    def features(self, rows: list[list[TokenSequence]]) -> dict[str, Tensor]:
        """Rows as batch-first tensors.

        Args:
            rows: for each of the k templates, b rows.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[b, t]``: the k sequences of a text one after the other, padded on
            the right, as losses and trainers slice and measure them; ``sequence_ends`` ``[b, k]``; ``text_span``
            ``[b, k, 2]``, counted within each sequence; ``truncated`` ``[b]``.
        """
        by_text = list(zip(*rows, strict=True))
        ids, mask = pad_right([[token for row in of_text for token in row.ids] for of_text in by_text])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "sequence_ends": torch.tensor([[len(row.ids) for row in of_text] for of_text in by_text]).cumsum(dim=1),
            "text_span": torch.tensor([[row.span for row in of_text] for of_text in by_text]),
            "truncated": torch.tensor([any(row.truncated for row in of_text) for of_text in by_text]),
        }

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Read the vectors of a batch of any size, cut into steps by their tokens.

        Args:
            features: from :meth:`preprocess`; without ``text_span`` a mean covers every token.
            kwargs: ignored; sentence-transformers passes bookkeeping of its own.

        Returns:
            The features with ``sentence_embedding`` ``[b, width]``, float32.
        """
        features["sentence_embedding"] = self.read(features, [self.plan])[0]
        return features

    @default_device_and_precision()
    def read(self, features: dict[str, Any], plans: Sequence[Plan]) -> list[Tensor]:
        """Read one or several plans in the same forward passes.

        Args:
            features: as for :meth:`forward`.
            plans: of this decoder, with the same span; the pass ends after what the deepest of them reads.

        Where a step does not fit into memory, steps become half as large from there on.

        Returns:
            For each plan ``[b, width]``, float32.

        Raises:
            ReadingError: a single text does not fit into memory.
        """
        packed_up_to = self.packed_up_to()
        if not torch.is_grad_enabled():
            self.compiling.at_start(self.model, self.plan, packed_up_to)
        usual = self.tokens_per_step
        vectors, budget = read_within_memory(self.model, plans, features, usual, packed_up_to)
        if budget != usual:
            self.tokens_per_step = budget
        return vectors

    def has_taken(self, seconds: float, left: float) -> None:
        """Tell what a part of a call took, and what the rest will take, in seconds: what compiling hangs on."""
        self.compiling.after(self.model, self.plan, self.packed_up_to(), seconds, left)

    @default_device_and_precision()
    def packed_up_to(self) -> int:
        """Tokens up to which a sequence takes the packed lane; found out once for each place the decoder is in."""
        if torch.is_grad_enabled():
            return 0
        place = (self.layout, self.model.device, self.model.dtype)
        if place not in self._packing:
            self._packing[place] = packed_up_to(self.model, self.plan, self.layout)
        return self._packing[place]

    @default_device_and_precision()
    def prefix_unsupported_reason(self) -> str | None:
        """Why texts cannot share what they begin with; found out once for each place the decoder is in."""
        place = (self.model.config._attn_implementation, self.model.device, self.model.dtype)
        if place not in self._whole:
            self._whole[place] = prefix_unsupported_reason(self.model, self.plan)
        return self._whole[place]

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"{type(self).__name__}({self.origin.name!r}, method={recipe.method!r}, "
            f"layers={describe(self.plan.layers) or 'final'!r}, "
            f"width={self.get_embedding_dimension()}, dtype={self.model.dtype})"
        )


Reader = TypeVar("Reader", bound=ValueReader)


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
) -> Reader:
    """Load a decoder cut for a recipe and make the module around it.

    Args:
        kind: of the module.
        checkpoint: where the model is.
        recipe: what to read.
        saved: what :func:`saved_config` says of the checkpoint.
        max_tokens: None is the model's own limit.
        dtype, device, model_kwargs: as in :func:`valuembed.load`.
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
        keep_layers=found.decoder_spec.num_layers if keep_tail else plan.layers[-1] + 1,
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
    reader = kind(model, tokenizer, plan, origin, limit, checkpoint.loaded_from)
    reader.check_templates(plan.recipe)
    if told := lacking(tokenizer, embedding_rows(model)):
        warnings.warn(f"model {checkpoint.name!r}: {told}", VocabularyWarning, stacklevel=3)
    return reader
