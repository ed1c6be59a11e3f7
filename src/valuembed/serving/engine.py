"""What a server embeds with: a loaded model, text by text, in steps that are put together by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import truncate_embeddings

from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import embedding_rows
from valuembed.backbone.checkpoints import check_recipe
from valuembed.data import check_text
from valuembed.errors import InputError, TemplateError, UnknownTokenError
from valuembed.execution import SHARED_FROM, PrefixCache, check_vectors, shared_tokens, usual_step
from valuembed.models import PROMPT_NAMES, Calibration, ValueEncoder
from valuembed.recipes import Recipe, resolve_recipe
from valuembed.serving.jobs import MOST_TEMPLATES, EmbedRequest, Engine, ModelFacts, Text, Tokenized
from valuembed.serving.playground.other_methods import EncoderPlayground
from valuembed.tokenization import TokenSequence, expand_chat


@dataclass(frozen=True)
class _Fed:
    """Sequences of one text, and where the keys and values of their prefixes are."""

    sequences: tuple[TokenSequence, ...]
    prefixes: PrefixCache | None


class EncoderEngine(Engine):
    """Gives the vectors that a loaded model's ``encode``, ``encode_query`` and ``encode_document`` give.

    Args:
        encoder: what :func:`valuembed.load` returns. Its weights have to stay as they are: what its templates put in
            front of texts is computed once.
        step_tokens: tokens of a step; None is a number that suits the device.
    """

    token_ids: int

    def __init__(self, encoder: ValueEncoder, step_tokens: int | None = None) -> None:
        self.name = encoder.reader.origin.name
        self.width = encoder.get_embedding_dimension() or 0
        self.step_tokens = step_tokens or encoder.reader.executor.tokens_per_step
        _, self.step_cost = usual_step(encoder.device)
        self.token_ids = min(len(encoder.reader.texts.tokenizer), embedding_rows(encoder.reader.model))
        self.encoder = encoder.eval()
        dtype = str(encoder.reader.model.dtype).removeprefix("torch.")
        prompts = {name: prompt for name, prompt in encoder.prompts.items() if prompt is not None}
        self.facts = ModelFacts(encoder.recipe.method, dtype, encoder.reader.max_tokens, prompts)
        self.playground = EncoderPlayground(encoder)
        self._recipe = lru_cache(maxsize=64)(self._recipe_with)
        with torch.inference_mode():
            # For its own templates it pays from the first text on.
            self._own_prefixes = encoder.reader.executor.prefixes(SHARED_FROM, encoder.recipe)

    @torch.inference_mode()
    @default_device_and_precision()
    def prepare(self, texts: Sequence[Text], manner: EmbedRequest) -> list[Tokenized]:
        """Tokenize b texts.

        Raises:
            TemplateError: the manner's template is none, or leaves no room for a text.
            RecipeError: the model is calibrated, and for another template.
            InputError: token ids that are not this tokenizer's, or that are no text.
        """
        reader = self.encoder.reader
        recipe, prompt = self._recipe(manner.template), self._prompt(manner)
        own = manner.template is None and manner.prompt is None
        prefixes = self._own_prefixes if own else reader.executor.prefixes(len(texts), recipe)
        strings = [text if isinstance(text, str) else self._decoded(text) for text in texts]
        try:
            by_template = reader.texts.sequences(
                strings, recipe, manner.role, prompt, max_tokens=reader.max_tokens, prefixes=prefixes is not None
            )
        except UnknownTokenError as error:
            raise InputError(f"it {next(iter(error.reasons.values()))}") from error
        k = len(by_template)
        # Behind different prefixes texts cannot share a step.
        group = (k, recipe.templates_for(manner.role), prompt) if prefixes else k
        packing = reader.executor.packing(SHARED_FROM)
        return [
            Tokenized(
                tokens=sum(len(one.ids) for one in sequences),
                length=max(len(one.ids) - shared_tokens(one, prefixes is not None, packing) for one in sequences),
                truncated=any(one.truncated for one in sequences),
                group=(group, packing.may(sequences)),
                payload=_Fed(sequences, prefixes),
                packed_cost=packing.token_cost if packing.may(sequences) else None,
            )
            for sequences in zip(*by_template, strict=True)
        ]

    @torch.inference_mode()
    @default_device_and_precision()
    def run(self, batch: Sequence[Tokenized]) -> NDArray[np.float32]:
        """Vectors ``[b, width]`` float32 of texts of one group.

        Raises:
            ReadingError: a vector is not finite, or a text does not fit into memory.
        """
        fed: list[_Fed] = [item.payload for item in batch]
        reader = self.encoder.reader
        prefixes = fed[0].prefixes
        planned = reader.executor.batch([one.sequences for one in fed], share=prefixes is not None)
        vectors = self.encoder.through_later_modules(reader.executor.read(planned, [reader.plan], prefixes)[0])
        if self.encoder.truncate_dim is not None:
            vectors = truncate_embeddings(vectors, self.encoder.truncate_dim)
        check_vectors(vectors, reader.model.dtype)
        found: NDArray[np.float32] = vectors.float().cpu().numpy()
        return found

    def _prompt(self, manner: EmbedRequest) -> str | None:
        if manner.prompt is not None:
            return manner.prompt
        names = (*PROMPT_NAMES.get(manner.role or "", ()), self.encoder.default_prompt_name)
        return next((self.encoder.prompts[name] for name in names if name in self.encoder.prompts), None)

    def _recipe_with(self, template: str | tuple[str, ...] | None) -> Recipe:
        """The model's recipe with another template."""
        reader, own = self.encoder.reader, self.encoder.recipe
        if template is None:
            return own
        if own.joined:
            raise TemplateError(f"method {own.method!r} has a template for each of its parts; leave template out")
        spec = template if isinstance(template, str) else list(template)
        recipe = resolve_recipe(own, template=expand_chat(spec, reader.texts.tokenizer))
        if len(recipe.template) > MOST_TEMPLATES:
            raise TemplateError(f"{len(recipe.template)} templates for a text; give at most {MOST_TEMPLATES}")
        reader.check_templates(recipe)
        for module in self.encoder:
            if isinstance(module, Calibration):
                check_recipe(module.record, recipe, self.name, reader.origin.name)
        return recipe

    def _decoded(self, ids: tuple[int, ...]) -> str:
        """The text of token ids, special tokens left out."""
        tokenizer = self.encoder.reader.texts.tokenizer
        if wrong := [token for token in ids if not 0 <= token < self.token_ids]:
            raise InputError(
                f"token id {wrong[0]} is not one of this model's, which are 0 to {self.token_ids - 1}; ids of another "
                "tokenizer mean other words here, so send texts"
            )
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not text:
            raise InputError("its token ids are special tokens only, and no text")
        if reason := check_text(text):
            raise InputError(f"its token ids decode to a text that cannot be embedded: it is {reason}")
        return text
