"""A decoder with its tokenizer and what is read from it: what every kind of model is built around."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valuembed._utils.loading_line import LINE
from valuembed.backbone import Plan, adapters, check_model_kwargs, embedding_rows, load_decoder, parse_dtype, prepare
from valuembed.backbone.checkpoints import Checkpoint, LoadedFrom, Origin, find_origin
from valuembed.errors import VocabularyWarning
from valuembed.execution import Executor
from valuembed.models.centring import saved_means
from valuembed.readout import install_attention_hooks
from valuembed.recipes import Recipe, describe, preset_for
from valuembed.tokenization import (
    TextTokenizer,
    TokenSequence,
    check_template,
    lacking,
    load_tokenizer,
    token_limit,
)


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
    if told := lacking(tokenizer, embedding_rows(model)):
        warnings.warn(f"model {checkpoint.name!r}: {told}", VocabularyWarning, stacklevel=3)
    return reader
