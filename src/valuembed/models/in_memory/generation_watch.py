"""A watch on generation: the vectors of prompts and of what a model generated after them, for no extra pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed._utils.text import inflected
from valuembed.backbone import bare_model
from valuembed.errors import InputError, ReadingError, UnsupportedModelError
from valuembed.models.in_memory.cache_vectors import FROM_CACHE, CacheReader, Span
from valuembed.recipes import LayerSpec, Recipe, describe

if TYPE_CHECKING:
    from typing_extensions import Self


class _Call:
    """One ``generate`` under way.

    Attributes:
        inputs: what it was called with, by name.
        before: how many tokens the cache held that it was given.
        cache: the one that it fills; None until the first pass is done.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.inputs = {**dict(zip(("inputs", "generation_config"), args, strict=False)), **kwargs}
        given: Any = self.inputs.get("past_key_values")
        # What is no cache at all, generate refuses itself.
        self.before = int(given.get_seq_length()) if hasattr(given, "get_seq_length") else 0
        self.cache: Any = None

    def setting(self, name: str, model: Any) -> Any:
        """What generation was told by one of the places that settings come from, the nearest first."""
        for place in (self.inputs.get("generation_config"), model.generation_config):
            if self.inputs.get(name) is None and getattr(place, name, None) is not None:
                return getattr(place, name)
        return self.inputs.get(name)


class Generation:
    """Holds what one call of ``generate`` fed and produced, with the vectors of both.

    Attributes:
        sequences: ``[b, t]`` token ids, as ``generate`` returned them.
        prompt_span: start and end of the prompt's tokens in the cache, padding included. Where a cache is passed from
            turn to turn, those that this turn fed: the last token that the turn before sampled is among them.
        generated_spans: for each of b rows, start and end of the generated tokens in the cache, without the row's
            end-of-sequence token, its padding, and the token that was sampled last, which is never fed.
    """

    def __init__(self, call: _Call, result: Any, model: PreTrainedModel, reader: CacheReader, normalize: bool) -> None:
        self._reader, self._normalize = reader, normalize
        self._cache = call.cache
        self._failed: Exception | None = None
        self.sequences: Tensor = result if isinstance(result, Tensor) else getattr(result, "sequences", torch.empty(0))
        self.prompt_span = (0, 0)
        self.generated_spans: list[tuple[int, int]] = []
        if (reason := _unreadable(call, self.sequences, model)) is not None:
            self._failed = ReadingError(reason)
        else:
            # Whatever fails here is told who asks for the vectors: what was generated is the caller's all the same.
            try:
                self._locate(call, model)
            except Exception as error:
                self._failed = error
        # At once: the next turn may crop or overwrite the cache, or leave its windows behind.
        self._prompt = self._failed or self._tried(lambda: self._read(self.prompt_span))
        self._generated = self._failed or self._tried(self._read_generated)

    @property
    def prompt(self) -> Tensor:
        """Vectors of the prompts, ``[b, width]`` float32.

        Raises:
            ReadingError: a way of decoding that leaves no cache to read, such as beam search.
            InputError: tokens that a sliding window has left behind.
        """
        return _given(self._prompt)

    @property
    def generated(self) -> Tensor:
        """Vectors of what was generated, ``[b, width]`` float32.

        Raises:
            ReadingError: a way of decoding that leaves no cache to read, such as beam search.
            InputError: rows in which nothing was generated that has values; or as :attr:`prompt`.
        """
        return _given(self._generated)

    def vectors(self, span: Span, rows: Sequence[int] | None = None) -> Tensor:
        """Read the vectors of any tokens that were fed, padding left out.

        Args:
            span: start and end in the cache, as in :func:`valuembed.from_cache`, for all rows or a pair for each.
            rows: which rows; None is all.

        Returns:
            ``[b, width]`` float32.

        Raises:
            ReadingError: a way of decoding that leaves no cache to read; or a later call has followed, and the cache is
                kept of the last alone.
            InputError: spans outside of it.
        """
        if self._failed is not None:
            raise self._failed
        if self._cache is None:
            raise ReadingError(
                "the cache is kept of the last generate() alone, and another has followed this one; read spans before"
            )
        return self._read(span, rows)

    def let_go(self) -> None:
        """Let go of the cache; the vectors that were read stay."""
        self._cache = None

    def _locate(self, call: _Call, model: PreTrainedModel) -> None:
        """Find out where in the cache the prompt and the generated tokens of each row are."""
        ids = call.inputs.get("inputs", call.inputs.get("input_ids"))
        embeds, mask = call.inputs.get("inputs_embeds"), call.inputs.get("attention_mask")
        # Without any input it starts from one token; embedded prompts are not among the ids that come back.
        in_sequences = ids.shape[1] if ids is not None else int(embeds is None)
        fed = in_sequences if embeds is None else embeds.shape[1]
        # A mask that is longer than the ids says that they are the new ones alone; else they are all.
        end = fed if mask is None or mask.shape[1] == fed else call.before + fed
        self.prompt_span = (call.before, end)
        if mask is None:
            mask = _inferred_mask(ids, call.setting("pad_token_id", model), call.setting("eos_token_id", model))
        new = self.sequences[:, in_sequences:].tolist()
        most = max(len(new[0]) - 1, 0)
        ends = _listed(call.setting("eos_token_id", model))
        pads = _listed(call.setting("pad_token_id", model)) or ends[:1]
        self.generated_spans = [(end, end + min(_length(row, ends, pads), most)) for row in new]
        real = torch.ones(len(new), end + most, dtype=torch.bool)
        if mask is not None:
            # Several sequences for a prompt lie side by side.
            each = mask[:, :end].bool().cpu().repeat_interleave(len(new) // len(mask), dim=0)
            real[:, : each.shape[1]] = each
        self._real = real

    def _read(self, span: Span, rows: Sequence[int] | None = None) -> Tensor:
        return self._reader.read(self._cache, span, self._real, self._normalize, rows)

    def _read_generated(self) -> Tensor:
        empty = [row for row, (start, end) in enumerate(self.generated_spans) if start == end]
        if empty:
            raise InputError(
                f"{inflected(len(empty), 'row')} {describe(empty)} of {len(self.generated_spans)} generated nothing "
                "that has values: the end-of-sequence token does not count, and the token sampled last is never fed; "
                "read the others with vectors(spans, rows), see generated_spans"
            )
        return self._read(self.generated_spans)

    @staticmethod
    def _tried(read: Callable[[], Tensor]) -> Tensor | Exception:
        try:
            return read()
        except Exception as error:
            return error


class GenerationWatch:
    """Watches what a model generates, inside a ``with``; made by :func:`watching`.

    Attributes:
        generations: one :class:`Generation` for each call of ``generate`` that returned, in their order.
    """

    def __init__(self, model: Any, method: str | Recipe | Mapping[str, Any], layers: LayerSpec, normalize: bool):
        self._model: Any = bare_model(model)
        if not hasattr(self._model, "generate"):
            raise UnsupportedModelError(
                f"{type(self._model).__name__} does not generate: it has no language model head; give a causal "
                "language model, or read its cache with from_cache()"
            )
        self._reader = CacheReader(model, method, layers)
        self._normalize = normalize
        self._thread: int | None = None
        self._depth = 0
        self._call: _Call | None = None
        self.generations: list[Generation] = []

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise ReadingError("this watch is under way already; make another with watching()")
        self._thread = threading.get_ident()
        _watch(self._model, self)
        return self

    def __exit__(self, *error: object) -> None:
        self._thread = None
        _unwatch(self._model, self)

    @property
    def prompt(self) -> Tensor:
        """Vectors of the prompts of the last ``generate``, as :attr:`Generation.prompt`."""
        return self._last.prompt

    @property
    def generated(self) -> Tensor:
        """Vectors of what the last ``generate`` produced, as :attr:`Generation.generated`."""
        return self._last.generated

    def vectors(self, span: Span, rows: Sequence[int] | None = None) -> Tensor:
        """Read the vectors of any tokens of the last ``generate``, as :meth:`Generation.vectors`."""
        return self._last.vectors(span, rows)

    @property
    def _last(self) -> Generation:
        if not self.generations:
            raise ReadingError(
                "no generate() was seen: call it on the model that is watched, inside the with block and in its thread"
            )
        return self.generations[-1]

    @contextmanager
    def _noting(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
        """Note one call; gives what takes its result."""
        # What the model drafts for itself meanwhile is none of the caller's.
        outer, self._call = self._call, None if self._depth else _Call(args, kwargs)
        call = self._call
        handle = self._model.register_forward_hook(self._note) if call is not None else None
        self._depth += 1

        def keep(result: Any) -> None:
            if call is not None:
                if self.generations:
                    self.generations[-1].let_go()
                self.generations.append(Generation(call, result, self._model, self._reader, self._normalize))

        try:
            yield keep
        finally:
            self._depth -= 1
            self._call = outer
            if handle is not None:
                handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the cache of a pass: a forward hook, which other threads run through too."""
        if threading.get_ident() == self._thread and self._call is not None and self._call.cache is None:
            self._call.cache = getattr(output, "past_key_values", None)


class _Watched:
    """What stands in the place of a model's ``generate`` while it is watched, by any number of threads.

    Args:
        model: one object; its class is left alone.
    """

    def __init__(self, model: Any) -> None:
        self.before = vars(model).get("generate")
        self.watches: list[GenerationWatch] = []
        generate = model.generate

        @wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            own = [watch for watch in self.watches if watch._thread == threading.get_ident()]
            with ExitStack() as stack:
                keeping = [stack.enter_context(watch._noting(args, kwargs)) for watch in own]
                result = generate(*args, **kwargs)
            for keep in keeping:
                keep(result)
            return result

        self.generate = watched


_watched: WeakKeyDictionary[nn.Module, _Watched] = WeakKeyDictionary()
_lock = threading.Lock()


def _watch(model: Any, watch: GenerationWatch) -> None:
    with _lock:
        if model not in _watched:
            _watched[model] = _Watched(model)
            model.generate = _watched[model].generate
        _watched[model].watches.append(watch)


def _unwatch(model: Any, watch: GenerationWatch) -> None:
    with _lock:
        found = _watched[model]
        found.watches.remove(watch)
        if found.watches:
            return
        del _watched[model]
        # Whatever was put there meanwhile stays, and calls what was found through this watch.
        if vars(model).get("generate") is found.generate:
            del model.generate
            if found.before is not None:
                model.generate = found.before


def watching(
    model: Any,
    method: str | Recipe | Mapping[str, Any] = FROM_CACHE,
    layers: LayerSpec = None,
    *,
    normalize: bool = True,
) -> GenerationWatch:
    """Watch what a model generates, and read the vectors of prompts and answers from its cache, for no extra pass.

    Inside the ``with``, calls of the model's ``generate`` in this thread are noted; nothing that is computed changes.
    As soon as one returns, the vectors of its prompts and of what it generated are read, each for the cost of a mean.
    The last call's cache is kept as long as the watch is.

    Args:
        model: a causal language model of transformers, compiled or with adapters.
        method, layers, normalize: as in :func:`valuembed.from_cache`.

    Returns:
        A context manager: ``prompt`` and ``generated`` of the last ``generate``, both ``[b, width]`` float32,
        ``vectors(span)`` of any of its tokens, and ``generations`` with each turn of a chat.

    Raises:
        RecipeError: a method that a cache cannot serve.
        UnsupportedModelError: a model that does not generate, or whose values cannot be read.

    Source: ours.
    """
    return GenerationWatch(model, method, layers, normalize)


def _unreadable(call: _Call, sequences: Tensor, model: PreTrainedModel) -> str | None:
    """Why a generation has no vectors; None where it has."""
    if (beams := call.setting("num_beams", model) or 1) > 1:
        return (
            f"generate() ran a beam search (num_beams={beams}), which reorders the rows of its cache, so that they are "
            "not the sequences that come back; generate greedily or by sampling, or encode() what came back"
        )
    if call.inputs.get("custom_generate") is not None or call.setting("token_healing", model):
        return (
            "generate() ran with custom_generate or token_healing, so that it is not known where its tokens lie in the "
            "cache; generate without, or encode() what came back"
        )
    if call.setting("use_cache", model) is False:
        return "generate() ran with use_cache=False, so there is no cache to read; leave use_cache on"
    if call.cache is None or sequences.dim() != 2:
        return (
            "generate() returned without a key-value cache that could be read: the model keeps none, or decodes in a "
            "way of its own; encode() what came back"
        )
    return None


def _inferred_mask(ids: Tensor | None, pad: Any, eos: Any) -> Tensor | None:
    """The mask ``[b, t]`` that ``generate`` infers where it is given none: pad tokens are no real ones."""
    if ids is None or pad is None or set(_listed(pad)) & set(_listed(eos)):
        return None
    return ids != _listed(pad)[0]


def _listed(tokens: Any) -> list[int]:
    """Token ids in any of the forms that settings have them: one, several, a tensor, none."""
    if tokens is None:
        return []
    return [int(token) for token in torch.as_tensor(tokens).flatten().tolist()]


def _length(row: Sequence[int], ends: Sequence[int], pads: Sequence[int]) -> int:
    """How many tokens of a generated row count: those before its first end, without padding at its end."""
    length = next((at for at, token in enumerate(row) if token in ends), len(row))
    while length and row[length - 1] in pads:
        length -= 1
    return length


def _given(found: Tensor | Exception) -> Tensor:
    if isinstance(found, Exception):
        raise found
    return found
