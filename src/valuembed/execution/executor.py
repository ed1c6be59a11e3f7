"""Steps through a decoder: each laid out, read in one forward pass, and made to fit into memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from valuembed._utils.text import counted
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import DecoderSpec, Plan, rope_groups
from valuembed.errors import ReadingError
from valuembed.execution.capabilities import LayoutName, packed_up_to, prefix_unsupported_reason
from valuembed.execution.compilation import (
    LEAST_GAIN,
    TRIAL_AFTER_SECONDS,
    CompileChoice,
    compile_layers,
    seconds_of_pass,
    uncompile_layers,
)
from valuembed.execution.fused_norms import fuse_norms, unfuse_norms
from valuembed.execution.scheduler import (
    PACKED_COST_ON_CPU,
    PADDED,
    Batch,
    Packing,
    Step,
    schedule,
    usual_step,
)
from valuembed.readout import BatchLayout, PrefixKV, Readout, centre, is_compiled, join, lay_out, read_prefix
from valuembed.recipes import Recipe
from valuembed.tokenization import TokenSequence

logger = logging.getLogger(__name__)

SHARED_FROM = 8
"""Texts of a call from which on what a template puts in front of them is computed once."""


@dataclass(frozen=True)
class PrefixCache:
    """The keys and values of constant prefixes, for one call: they hold as long as the weights do.

    Attributes:
        model: the decoder, whose texts can share a prefix.
        decoder_spec: what it is made of.
    """

    model: PreTrainedModel
    decoder_spec: DecoderSpec
    _known: dict[tuple[int, ...], PrefixKV] = field(default_factory=dict)

    def behind(self, prefix: tuple[int, ...]) -> PrefixKV:
        """Keys and values of a prefix of token ids, computed the first time that it is asked for."""
        if prefix not in self._known:
            self._known[prefix] = read_prefix(self.model, self.decoder_spec, prefix)
        return self._known[prefix]


class Executor:
    """Runs steps through a decoder.

    Args:
        model: the decoder, with attention hooks.
        plan: any of its plans.

    Attributes:
        layout: how texts lie in a step: ``"auto"`` packs where that costs less, ``"padded"`` and ``"packed"`` all.
        compile: whether layers are compiled before the first pass; ``"auto"`` compiles them when passes have taken
            long enough to pay for it, and only where they are faster then.
        fuse: whether RMS norms run as one operation where layers are not compiled; None is on CUDA.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.layout: LayoutName = "auto"
        self.compile: CompileChoice = False
        self.fuse: bool | None = None
        self._fused = False
        self._seconds = 0.0
        self._tokens_per_step: int | None = None
        self._packing: dict[object, int] = {}
        self._whole: dict[object, str | None] = {}

    @property
    def tokens_per_step(self) -> int:
        """Padded tokens computed in one step: what suits the device, or less where memory did not suffice."""
        return self._tokens_per_step or usual_step(self.model.device)[0]

    @tokens_per_step.setter
    def tokens_per_step(self, value: int) -> None:
        self._tokens_per_step = value

    @default_device_and_precision()
    def packed_up_to(self) -> int:
        """Tokens up to which a text is packed; found out once for each place the decoder is in."""
        if torch.is_grad_enabled():
            return 0
        place = (self.layout, self.model.device, self.model.dtype)
        if place not in self._packing:
            self._packing[place] = packed_up_to(self.model, self.plan, self.layout)
        return self._packing[place]

    def packing(self, texts: int) -> Packing:
        """Which texts of a call may lie in one row, and what that costs.

        Args:
            texts: how many the call has: on a CPU, fewer than :data:`SHARED_FROM` are not worth the trial.
        """
        on_cuda, chosen = self.model.device.type == "cuda", self.layout == "auto"
        if chosen and not on_cuda and texts < SHARED_FROM:
            return PADDED
        return Packing(self.packed_up_to(), PACKED_COST_ON_CPU if chosen and not on_cuda else 1.0, masked=not on_cuda)

    @default_device_and_precision()
    def prefix_unsupported_reason(self) -> str | None:
        """Why texts cannot share what they begin with; found out once for each place the decoder is in."""
        packed = self.packed_up_to() > 0
        place = (packed, self.model.config._attn_implementation, self.model.device, self.model.dtype)
        if place not in self._whole:
            self._whole[place] = prefix_unsupported_reason(self.model, self.plan, packed=packed)
        return self._whole[place]

    def prefixes(self, texts: int, recipe: Recipe) -> PrefixCache | None:
        """Where the prefixes of a call's sequences are kept; None where each text is to be run whole.

        Args:
            texts: how many the call has.
            recipe: that they are read by.
        """
        whole = texts < SHARED_FROM or (recipe.span == "all" and recipe.weights == "mean")
        if whole or torch.is_grad_enabled() or self.prefix_unsupported_reason():
            return None
        return PrefixCache(self.model, self.plan.decoder_spec)

    def schedule(
        self, texts: Sequence[Sequence[TokenSequence]], packing: Packing = PADDED, *, share: bool = False
    ) -> list[Batch]:
        """Plan how the k sequences of each of b texts are read; see :func:`valuembed.execution.scheduler.schedule`."""
        _, cost = usual_step(self.model.device)
        return schedule(texts, self.tokens_per_step, cost, rope_groups(self.model), packing=packing, share=share)

    def batch(self, texts: Sequence[Sequence[TokenSequence]], *, share: bool = False) -> Batch:
        """The k sequences of each of b texts as one batch, where others have planned which texts are read together."""
        packing = self.packing(SHARED_FROM)
        return Batch.of(range(len(texts)), texts, rope_groups(self.model), packing=packing, share=share)

    @default_device_and_precision()
    def read(self, batch: Batch, plans: Sequence[Plan], prefixes: PrefixCache | None = None) -> list[Tensor]:
        """Read one or several plans of a batch in the same forward passes.

        Args:
            batch: its steps.
            plans: of this decoder, with the same span; a pass ends after what the deepest of them reads.
            prefixes: of the steps that share one.

        Returns:
            For each plan ``[len(batch.rows), width]`` float32: the mean over a text's sequences, centred and joined as
            its recipe says. A sequence with several spans has a row for each, where a text is one sequence.

        Raises:
            ReadingError: a single text does not fit into memory; or see :class:`valuembed.readout.Readout`.
        """
        if not torch.is_grad_enabled():
            self._set_norms()
            if self.compile == "auto":
                self._compile_where_it_pays()
            elif self.compile:
                self._compile()
        parts = [part for plan in plans for part in plan.parts]
        start = time.perf_counter()
        read = [done for step in batch.steps for done in self._within_memory(step, parts, prefixes)]
        self._seconds += time.perf_counter() - start
        order = torch.tensor([place for step, _ in read for place in step.places_of_vectors]).argsort(stable=True)
        by_part = []
        for of_part in zip(*(vectors for _, vectors in read), strict=True):
            rows = torch.cat(of_part)[order.to(of_part[0].device)]
            by_part.append(rows.view(-1, batch.k, rows.shape[1]))
        remaining = iter(by_part)
        return [_one_vector(plan, list(islice(remaining, len(plan.parts)))) for plan in plans]

    def lay_out(
        self, step: Step, prefixes: PrefixCache | None = None, *, whole: bool = False
    ) -> tuple[BatchLayout, dict[str, object]]:
        """A step as the decoder's input, and where its texts' tokens are in it.

        Args:
            step: its sequences.
            prefixes: where keys and values of the prefix are, if it has one.
            whole: a mean covers every token.
        """
        several = any(sequence.spans for sequence in step.sequences)
        return lay_out(
            [sequence.ids for sequence in step.sequences],
            [(0, len(sequence.ids)) if whole else sequence.span for sequence in step.sequences],
            prefixes.behind(step.prefix) if prefixes is not None and step.p and not step.packed else None,
            packed=step.packed,
            device=self.model.device,
            dtype=self.model.dtype,
            several=[sequence.spans or (sequence.span,) for sequence in step.sequences] if several else None,
            shared=step.p if prefixes is not None else 0,
        )

    def _within_memory(
        self, step: Step, plans: Sequence[Plan], prefixes: PrefixCache | None
    ) -> list[tuple[Step, list[Tensor]]]:
        """Read a step; where it does not fit into memory, in steps of half as many tokens, and so on from there."""
        _, cost = usual_step(self.model.device)
        parts = step.cut(self.tokens_per_step, cost, rope_groups(self.model))
        if len(parts) > 1:
            return [done for part in parts for done in self._within_memory(part, plans, prefixes)]
        try:
            layout, inputs = self.lay_out(step, prefixes, whole=plans[0].recipe.span == "all")
            return [(step, Readout(self.model, plans, layout).run(**inputs))]
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            # In training the trainer decides what a batch is.
            if not full or torch.is_grad_enabled():
                raise
            if self.tokens_per_step <= step.longest:
                raise ReadingError(
                    f"a text of {counted(step.longest, 'token')}, template included, does not fit into the memory of "
                    f"{self.model.device}; cut texts with max_tokens, or use a smaller dtype"
                ) from error
        # Only here the tensors of the step that failed are gone.
        self.tokens_per_step = max(1, self.tokens_per_step // 2)
        logger.warning("out of memory: going on with steps of %d tokens", self.tokens_per_step)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._within_memory(step, plans, prefixes)

    def _set_norms(self) -> None:
        """Fuse norms or take that back; a compiler fuses them by itself."""
        wanted = self.model.device.type == "cuda" if self.fuse is None else self.fuse
        if (wanted := wanted and self.compile is not True) is self._fused:
            return
        self._fused = wanted
        if not wanted:
            unfuse_norms(self.model)
        elif reason := fuse_norms(self.model, self.plan):
            logger.warning("norms are not fused: %s", reason)

    def _compile(self) -> bool:
        """Compile layers that are not; whether they are."""
        if is_compiled(self.model, self.plan.decoder_spec):
            return True
        if reason := compile_layers(self.model, self.plan, self._layouts()):
            logger.warning("layers are not compiled: %s", reason)
            self.compile = False
        return not reason

    def _layouts(self) -> list[bool]:
        """Whether texts of a step lie packed in one row: both where some do."""
        packing = self.packing(SHARED_FROM)
        if not packing.up_to:
            return [False]
        return [True] if packing.token_cost <= 1 else [False, True]

    def _compile_where_it_pays(self) -> None:
        if self._seconds < TRIAL_AFTER_SECONDS:
            return
        packed = self._layouts()[-1]
        before = seconds_of_pass(self.model, self.plan, packed=packed)
        self.compile = True
        self._set_norms()
        if not self._compile():
            return
        gain = before / seconds_of_pass(self.model, self.plan, packed=packed)
        if gain < LEAST_GAIN:
            logger.info("layers are not compiled: they are %.2f times as fast", gain)
            uncompile_layers(self.model, self.plan)
            self.compile = False


def _one_vector(plan: Plan, by_part: Sequence[Tensor]) -> Tensor:
    """A plan's vectors ``[b, width]`` from what each of its parts has of the k sequences ``[b, k, width]``."""
    if plan.joined:
        by_part = [of_part[:, places] for of_part, places in zip(by_part, plan.recipe.places(), strict=True)]
    vectors = [of_part.mean(dim=1) for of_part in by_part]
    for at, part in enumerate(plan.parts):
        if part.recipe.centring == "none":
            continue
        if part.mean is None:
            raise ReadingError(f"method {plan.recipe.method!r} takes a mean away, which this decoder was not read for")
        vectors[at] = centre(vectors[at], part.mean)
    return join(vectors, [part.recipe.weight for part in plan.parts]) if plan.joined else vectors[0]
