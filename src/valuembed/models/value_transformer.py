"""The adapter between sentence-transformers' features and steps through the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import Plan, adapters, has_int8_products
from valuembed.backbone.checkpoints import CONFIG_FILE, locate, remove_saved, saved_config
from valuembed.data import as_text, as_texts, check_texts
from valuembed.errors import CheckpointError, InputError, OutputError, RecipeError, UnsupportedModelError
from valuembed.models.centring import MEANS_FILE, save_means
from valuembed.models.value_reader import ValueReader, build
from valuembed.readout import pad_right
from valuembed.recipes import Recipe
from valuembed.tokenization import CHAT_TEMPLATE, TOKENIZER_FILES, TokenSequence


class ValueTransformer(ValueReader, Transformer):
    """A reader as a sentence-transformers module.

    A ``Transformer`` for the ecosystem (adapters, trainer, saving), but built from finished parts: that constructor
    would load the whole model and a multimodal processor, so it is not called.
    """

    # What saved models record as the place of this class.
    __module__ = "valuembed.modules"
    config_file_name = CONFIG_FILE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ValueReader.__init__(self, *args, **kwargs)
        # What the methods inherited from Transformer look at.
        self.transformer_task = "feature-extraction"
        self.backend = "torch"
        self.can_flatten_inputs = False
        self.module_output_name = "sentence_embedding"
        self.modality_config = {"text": {"method": "forward", "method_output_name": None}}

    @default_device_and_precision()
    def preprocess(  # type: ignore[override]
        self, inputs: Any, prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Texts as features. Plain text stays plain: a chat template is used only where the recipe names it.

        Args:
            inputs: a text or b texts.
            prompt: an instruction for all of them.
            task: ``"query"`` or ``"document"``.
            kwargs: ``max_length`` from the trainer; anything else is refused by name.

        Raises:
            InputError: something that is not a text, with its position.
        """
        limit = kwargs.pop("max_length", None)
        if unknown := sorted(key for key, value in kwargs.items() if value is not None):
            raise InputError(f"preprocess() does not take {', '.join(unknown)}")
        given = as_text(inputs)
        texts = [given] if isinstance(given, str) else as_texts(given)
        check_texts(texts)
        return self.features(self.tokenize_texts(texts, prompt, task, max_tokens=limit))

    def features(self, rows: list[list[TokenSequence]]) -> dict[str, Tensor]:
        """Put sequences into batch-first tensors, as losses and trainers slice and measure them.

        Args:
            rows: for each of the k templates, b sequences.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[b, t]``: the k sequences of a text one after the other, padded on
            the right; ``sequence_ends`` ``[b, k]``; ``text_span`` ``[b, k, 2]``, counted within each sequence;
            ``truncated`` ``[b]``.
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

        Raises:
            InputError: rows are padded on the left.
            ReadingError: a single text does not fit into memory.
        """
        features["sentence_embedding"] = self.read(features, [self.plan])[0]
        return features

    @default_device_and_precision()
    def read(self, features: Mapping[str, Any], plans: Sequence[Plan]) -> list[Tensor]:
        """Read one or several plans of features in the same forward passes.

        Args:
            features: as for :meth:`forward`.
            plans: of this decoder, with the same span; a pass ends after what the deepest of them reads.

        Returns:
            For each plan ``[b, width]``, float32.
        """
        sequences = _sequences(features)
        batches = self.executor.schedule(sequences, self.executor.packing(len(sequences)))
        vectors = [self.executor.read(batch, plans) for batch in batches]
        order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
        return [torch.cat(of_plan)[order.to(of_plan[0].device)] for of_plan in zip(*vectors, strict=True)]

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
        if has_int8_products(self.model):
            raise OutputError(
                "a model that computes its products in int8 is not saved; load it without dtype='int8' and save that, "
                "and load the folder with dtype='int8'"
            )
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
            # Those of another tokenizer or recipe would be read together with this one's.
            remove_saved(output_path, MEANS_FILE, *{*TOKENIZER_FILES, CHAT_TEMPLATE}.difference(written))
        save_means(self.plan, Path(output_path))
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
        return build(
            ValueTransformer, checkpoint, Recipe.from_dict(saved["recipe"]), saved=saved, model_kwargs=model_kwargs
        )


def _sequences(features: Mapping[str, Any]) -> list[tuple[TokenSequence, ...]]:
    """The k sequences of each of b texts, taken out of features."""
    mask = features["attention_mask"].cpu()
    if bool((mask[:, 0] == 0).any()):
        raise InputError(
            "attention_mask pads on the left; this module wants rows padded on the right, as preprocess() does"
        )
    ends = features.get("sequence_ends", mask.sum(dim=1, keepdim=True)).tolist()
    spans = features["text_span"].tolist() if features.get("text_span") is not None else None
    found = []
    for row, ids in enumerate(features["input_ids"].tolist()):
        starts = [0, *ends[row][:-1]]
        found.append(
            tuple(
                TokenSequence(ids[start:end], (0, end - start) if spans is None else tuple(spans[row][i]))
                for i, (start, end) in enumerate(zip(starts, ends[row], strict=True))
            )
        )
    return found
