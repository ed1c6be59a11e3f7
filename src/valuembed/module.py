"""The sentence-transformers module: texts in, one vector a text out, read from inside the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule, Transformer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valuembed import adapters
from valuembed.batching import pad_right, usual_step
from valuembed.checkpoint import Checkpoint, locate
from valuembed.cleaning import CLEANINGS
from valuembed.compiling import Compiling
from valuembed.decoder import load_decoder, parse_dtype
from valuembed.errors import CheckpointError, InputError, RecipeError, UnsupportedModelError
from valuembed.feeding import Batch, batches
from valuembed.inputs import check_prompt, check_texts
from valuembed.lane_choice import LaneName, packed_up_to, why_whole
from valuembed.layers import describe
from valuembed.passes import read_within_memory
from valuembed.reader import Plan
from valuembed.recipes import Recipe
from valuembed.resolution import (
    CHAT_TEMPLATE,
    CONFIG_FILE,
    TOKENIZER_FILES,
    Origin,
    find_origin,
    load_tokenizer,
    prepare,
    saved_config,
    token_limit,
)
from valuembed.tokenizing import TextTokenizer, TokenRow
from valuembed.weight_files import remove_saved


class ValueTransformer(Transformer):
    """Reads one vector a text from a decoder, as a recipe says.

    A ``Transformer`` for the ecosystem (adapters, trainer, saving), but built from finished parts: its parent's
    constructor would load the whole model and a multimodal processor, so it is not called.

    Args:
        model: the decoder, cut or whole, its attention behind the reader's door.
        tokenizer: the model's.
        plan: what to read; its recipe holds absolute layers.
        origin: where the decoder comes from.
        max_tokens: the longest sequence that is fed; None for no limit.
    """

    config_file_name = CONFIG_FILE

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        origin: Origin,
        max_tokens: int | None,
    ) -> None:
        InputModule.__init__(self)  # type: ignore[no-untyped-call]
        # What the methods inherited from Transformer look at.
        self.transformer_task = "feature-extraction"
        self.backend = "torch"
        self.can_flatten_inputs = False
        self.module_output_name = "sentence_embedding"
        self.modality_config = {"text": {"method": "forward", "method_output_name": None}}
        self.processor = tokenizer
        self.model = model
        self.plan = plan
        self.origin = origin
        self.max_tokens = max_tokens
        self._tokens_per_step: int | None = None
        self.lane: LaneName = "auto"
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
        recipe = self.recipe
        return self.plan.anatomy.width(
            self.plan.layers, signal=recipe.signal, weights=recipe.weights, aligned=recipe.aligned
        )

    def tokenize_texts(
        self,
        texts: Sequence[str],
        prompt: str | None,
        role: str | None,
        max_tokens: int | None = None,
        recipe: Recipe | None = None,
    ) -> list[list[TokenRow]]:
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
        """
        check_prompt(prompt)
        recipe = recipe or self.recipe
        cleaned = [CLEANINGS[recipe.cleaning](text) for text in texts]
        return [
            self.texts.rows(cleaned, template, prompt or "", max_tokens=max_tokens or self.max_tokens)
            for template in recipe.templates_for(role)
        ]

    def batches(
        self, texts: Sequence[str], prompt: str | None, role: str | None, recipe: Recipe | None = None
    ) -> Iterator[Batch]:
        """Texts cut into steps of a token budget, tokenized while earlier ones are computed.

        Args:
            texts: b texts, known to be texts.
            prompt, role, recipe: as in :meth:`tokenize_texts`.
        """
        return batches(self, texts, prompt, role, recipe or self.recipe)

    def features(self, rows: list[list[TokenRow]]) -> dict[str, Tensor]:
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

    def preprocess(  # type: ignore[override]
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Texts as features. Plain text stays plain: a chat template is used only where the recipe names it.

        Args:
            inputs: b texts.
            prompt: an instruction for all of them.
            task: ``"query"`` or ``"document"``.
            kwargs: ``max_length`` from the trainer; anything else is refused by name.

        Raises:
            InputError: something that is not a text, with its position.
        """
        limit = kwargs.pop("max_length", None)
        if unknown := sorted(key for key, value in kwargs.items() if value is not None):
            raise InputError(f"preprocess() does not take {', '.join(unknown)}")
        check_texts(inputs)
        return self.features(self.tokenize_texts(inputs, prompt, task, max_tokens=limit))

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

    def packed_up_to(self) -> int:
        """Tokens up to which a sequence takes the packed lane; found out once for each place the decoder is in."""
        if torch.is_grad_enabled():
            return 0
        place = (self.lane, self.model.device, self.model.dtype)
        if place not in self._packing:
            self._packing[place] = packed_up_to(self.model, self.plan, self.lane)
        return self._packing[place]

    def why_whole(self) -> str | None:
        """Why texts cannot share what they begin with; found out once for each place the decoder is in."""
        place = (self.model.config._attn_implementation, self.model.device, self.model.dtype)
        if place not in self._whole:
            self._whole[place] = why_whole(self.model, self.plan)
        return self._whole[place]

    def get_config_dict(self) -> dict[str, Any]:
        """What a saved folder records beside the weights."""
        return {
            "recipe": self.recipe.to_dict(),
            "max_tokens": self.max_tokens,
            "origin": asdict(self.origin),
            "held_layers": self.model.config.num_hidden_layers,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the kept layers (or only the adapter, where the origin can be fetched again), tokenizer and recipe."""
        if not safe_serialization:
            raise RecipeError("safe_serialization=False would write pickled weights; only safetensors are written")
        saved_before = Path(output_path, CONFIG_FILE).is_file()
        adapters.save(
            self.model,
            output_path,
            base_name=self.origin.name,
            with_base=not self.origin.fetchable,
            own_folder=saved_before,
        )
        written = {Path(path).name for path in self.processor.save_pretrained(output_path)}
        if saved_before:
            # Those of another tokenizer would be read together with this one's.
            remove_saved(output_path, *{*TOKENIZER_FILES, CHAT_TEMPLATE}.difference(written))
        self.save_config(output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        *,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> ValueTransformer:
        """Load what :meth:`save` wrote; called by sentence-transformers.

        Raises:
            UnsupportedModelError: a backend other than torch.
        """
        if backend != "torch":
            raise UnsupportedModelError(
                f"backend={backend!r} cannot be used: attention values are read while torch computes them; use "
                "backend='torch'"
            )
        if subfolder and Path(model_name_or_path).is_dir():
            model_name_or_path, subfolder = str(Path(model_name_or_path) / subfolder), ""
        checkpoint = locate(
            model_name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
        )
        saved = saved_config(checkpoint)
        if saved is None:
            raise CheckpointError(f"model {model_name_or_path!r} holds no {CONFIG_FILE}: it was not saved by valuembed")
        return build(checkpoint, Recipe.from_dict(saved["recipe"]), saved=saved, model_kwargs=model_kwargs)

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"ValueTransformer({self.origin.name!r}, method={recipe.method!r}, "
            f"layers={describe(self.plan.layers) or 'final'!r}, "
            f"width={self.get_embedding_dimension()}, dtype={self.model.dtype})"
        )


def build(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    saved: dict[str, Any] | None = None,
    max_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> ValueTransformer:
    """Load a decoder cut for a recipe and make the module around it.

    Args:
        checkpoint: where the model is.
        recipe: what to read.
        saved: what :func:`saved_config` says of the checkpoint.
        max_tokens: None is the model's own limit.
        dtype, device, model_kwargs: as in :func:`valuembed.load`.
    """
    model_kwargs = dict(model_kwargs or {})
    dtype = dtype or parse_dtype(model_kwargs.pop("dtype", model_kwargs.pop("torch_dtype", None)))
    found = prepare(checkpoint, recipe, saved, dtype, device)
    base, plan = found.base, found.plan
    keep_tail = plan.recipe.reads_final_norm
    model = load_decoder(
        base,
        found.config,
        found.anatomy,
        keep_layers=found.anatomy.num_layers if keep_tail else plan.layers[-1] + 1,
        keep_tail=keep_tail,
        dtype=found.dtype,
        device=device,
        model_kwargs=model_kwargs,
    )
    if found.is_adapter:
        adapters.attach(model, checkpoint)
    tokenizer = load_tokenizer(checkpoint if checkpoint.file("tokenizer_config.json") else base)
    origin = find_origin(base, found.config, found.anatomy, saved)
    limit = max_tokens if max_tokens is not None else (saved or {}).get("max_tokens")
    return ValueTransformer(model, tokenizer, plan, origin, token_limit(limit, tokenizer, found.config))
