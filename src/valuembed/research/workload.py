"""How much work a set of recipes is on texts that are not read yet: passes, tokens, hours. No weights are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from valuembed.backbone import DecoderSpec, LoadOptions, prepare, resolve_plan, trace_architecture
from valuembed.backbone.checkpoints import locate, saved_config
from valuembed.errors import CheckpointError, UnsupportedModelError
from valuembed.recipes import METHODS, Recipe, group_by_tokens, parse_template, preset_for
from valuembed.reporting import markdown
from valuembed.research.experiments import Backbone
from valuembed.tokenization import TextTokenizer, load_tokenizer, token_limit

TOKENS_PER_WORD = 1.3
"""English words in tokens of a decoder's vocabulary, roughly: for templates where no tokenizer is at hand."""

CHARACTERS_PER_TOKEN = 4.0
"""The same for texts."""


@dataclass(frozen=True)
class Decoder:
    """A decoder as far as it is known without its weights.

    Attributes:
        name: its public name.
        num_layers: L of the whole decoder.
        config, decoder_spec, saved: what :func:`valuembed.backbone.resolve_plan` takes.
        words: its tokenizer; None where it is not at hand.
        max_tokens: the longest sequence that is fed, template included; None for no limit.
    """

    name: str
    num_layers: int
    config: PretrainedConfig
    decoder_spec: DecoderSpec
    saved: dict[str, Any] | None
    words: TextTokenizer | None
    max_tokens: int | None = None

    def measure(self, texts: Sequence[str]) -> tuple[int, list[float]]:
        """How many different texts there are, and the lengths in tokens of about 500 of them, uncut."""
        different = list(dict.fromkeys(texts))
        some = different[:: max(1, len(different) // 500)]
        if self.words is None:
            return len(different), [len(text) / CHARACTERS_PER_TOKEN for text in some]
        rows = self.words.rows(some, "{text}", max_tokens=None)
        return len(different), [float(row.span[1] - row.span[0]) for row in rows]

    def around(self, template: str) -> tuple[int, float]:
        """How often a template feeds the text, and how many tokens it adds, BOS included."""
        parsed = parse_template(template)
        copies = sum(slot in ("text", "echo") for slot in parsed.pieces[1::2])
        if self.words is None:
            return copies, 1 + TOKENS_PER_WORD * len(" ".join(parsed.literals).split())
        row = self.words.rows(["word"], template, max_tokens=None)[0]
        return copies, float(len(row.ids) - copies * (row.span[1] - row.span[0]))

    def fed(self, template: str, lengths: Sequence[float]) -> float:
        """How many tokens a template feeds of texts of such lengths, in the mean; longer sequences are cut."""
        copies, added = self.around(template)
        limit = math.inf if self.max_tokens is None else self.max_tokens
        return sum(min(copies * length + added, limit) for length in lengths) / len(lengths)


def written_decoder(backbone: Backbone, options: LoadOptions) -> Decoder:
    """A backbone's own decoder, from the sizes in its file. The tokenizer is used where it lies on this machine.

    Args:
        backbone: whose decoder it is.
        options: ``max_tokens`` and those of the hub count.

    Raises:
        UnsupportedModelError: its file names a decoder that cannot be made.
        RecipeError: an impossible ``max_tokens``.
    """
    try:
        config = AutoConfig.for_model(**backbone.decoder)
    except ValueError as error:
        raise UnsupportedModelError(f"backbone {backbone.id!r}: its decoder cannot be made: {error}") from error
    words, limit = None, options.max_tokens
    with suppress(CheckpointError):
        checkpoint = locate(backbone.model, options=options, local_files_only=True)
        words = TextTokenizer(load_tokenizer(checkpoint))
        limit = token_limit(limit, words.tokenizer, config)
    return Decoder(backbone.model, backbone.num_layers, config, trace_architecture(config), None, words, limit)


def found_decoder(model: str, options: LoadOptions) -> Decoder:
    """The decoder of a checkpoint, from its configuration.

    Args:
        model: as in :func:`valuembed.load`.
        options: ``max_tokens`` and those of the hub count.

    Raises:
        CheckpointError, UnsupportedModelError, RecipeError: as :func:`valuembed.load`.
    """
    checkpoint = locate(model, options=options)
    saved = saved_config(checkpoint)
    # What a folder was saved for can be read from it. Only what the decoder is made of is wanted here, which knows no
    # recipe.
    recipe = Recipe.from_dict(saved["recipe"]) if saved else METHODS["hidden_mean"]
    found = prepare(checkpoint, recipe, saved)
    saved = None if found.is_adapter else saved
    depth = saved["origin"]["num_layers"] if saved else found.decoder_spec.num_layers
    held = checkpoint if checkpoint.file("tokenizer_config.json") else found.base
    words = TextTokenizer(load_tokenizer(held))
    limit = options.max_tokens
    if limit is None and saved is not None:
        limit = saved.get("max_tokens")
    limit = token_limit(limit, words.tokenizer, found.config)
    return Decoder(checkpoint.public_name, depth, found.config, found.decoder_spec, saved, words, limit)


@dataclass(frozen=True)
class Pass:
    """Rows that are read in the same forward pass.

    Attributes:
        rows: their labels.
        templates: sequences that are fed for one text.
        layers: decoder layers that are run, the highest one counted whole.
        tokens: by task.
        flops: floating-point operations for all tasks: two for each token and parameter of these layers.
    """

    rows: tuple[str, ...]
    templates: int
    layers: int
    tokens: Mapping[str, float]
    flops: float


@dataclass(frozen=True)
class Workload:
    """What is to be done, and about how long it takes.

    Attributes:
        model: its name.
        num_layers: L.
        parameters: of what is loaded, embeddings included.
        passes: in the order of their first rows.
        texts: by task how many texts, and their mean length in tokens without template, uncut.
        missing: by task why there is no data.
        tflops: assumed speed, in 10^12 floating-point operations a second.
        counted: whether templates were tokenized, or estimated from their words.
        notes: on layers and sizes, in sentences.
    """

    model: str
    num_layers: int
    parameters: int
    passes: tuple[Pass, ...]
    texts: Mapping[str, tuple[int, float]]
    missing: Mapping[str, str]
    tflops: float
    counted: bool
    notes: tuple[str, ...]

    @property
    def tokens(self) -> float:
        """Tokens of all passes on all tasks."""
        return sum(sum(part.tokens.values()) for part in self.passes)

    @property
    def hours(self) -> float:
        """Time at the assumed speed."""
        return sum(map(self.hours_of, self.passes))

    def hours_of(self, part: Pass) -> float:
        """Time of one pass at the assumed speed."""
        return part.flops / (self.tflops * 1e12) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "tokens": self.tokens, "hours": self.hours}

    def to_markdown(self) -> str:
        """The work as two tables, with what the estimate rests on."""
        templates = "counted with the tokenizer" if self.counted else f"estimated at {TOKENS_PER_WORD} tokens a word"
        lines = [
            f"# Work on {self.model}: {_count(self.tokens)} tokens, about {_time(self.hours)}",
            "",
            f"An estimate. Assumed: {self.tflops:g} TFLOP/s sustained (--tflops), 2 operations for each token and "
            f"parameter of the layers that are run. Template tokens are {templates}. Loaded: "
            f"{_count(self.parameters)} parameters, {self.parameters * 2 / 1e9:.3g} GB in bfloat16.",
            "",
            *(line for note in self.notes for line in (note, "")),
        ]
        passes = [
            [
                ", ".join(part.rows),
                str(part.templates),
                str(part.layers),
                _count(sum(part.tokens.values())),
                _time(self.hours_of(part)),
            ]
            for part in self.passes
        ]
        head = ["rows that share a pass", "sequences a text", f"layers run, of {self.num_layers}", "tokens", "time"]
        lines += [*markdown.table(head, passes, "-"), ""]
        tasks = []
        for task, (texts, length) in self.texts.items():
            fed = sum(part.tokens[task] for part in self.passes)
            tasks.append([task, f"{texts:,}", f"{length:.0f}", _count(fed)])
        tasks += [[task, "no data"] for task in self.missing]
        lines += markdown.table(["task", "texts", "tokens a text", "tokens in all passes"], tasks, "-")
        lines += ["", *(f"- {task}: {reason}" for task, reason in self.missing.items())] if self.missing else []
        return "\n".join(lines) + "\n"


def estimate(
    decoder: Decoder,
    recipes: Mapping[str, Recipe],
    data: Mapping[str, tuple[int, float | Sequence[float]] | str],
    tflops: float,
    notes: Sequence[str] = (),
) -> Workload:
    """The work that recipes are on tasks.

    Args:
        decoder: what runs them.
        recipes: by label, layers in any form.
        data: by task the number of texts and, in tokens, their mean length or the lengths of some; or why there is no
            data. Only lengths tell how much of long texts is cut.
        tflops: assumed sustained speed.
        notes: passed on to the result.

    Raises:
        LayerError, CheckpointError: layers that the decoder does not have.
    """
    decoder_spec = decoder.decoder_spec
    preset = preset_for(decoder.config)
    plans = {label: resolve_plan(recipe, preset, decoder_spec, decoder.saved) for label, recipe in recipes.items()}
    depths = {label: plan.kept_layers for label, plan in plans.items()}
    texts = {
        task: (size[0], [float(size[1])] if isinstance(size[1], (int, float)) else size[1])
        for task, size in data.items()
        if not isinstance(size, str)
    }
    passes = []
    for labels in group_by_tokens(recipes):
        templates = recipes[labels[0]].templates_for(None)
        tokens = {
            task: count * sum(decoder.fed(template, lengths) for template in templates)
            for task, (count, lengths) in texts.items()
        }
        layers = max(depths[label] for label in labels)
        flops = 2.0 * sum(tokens.values()) * sum(decoder_spec.sizes[0][:layers])
        passes.append(Pass(tuple(labels), len(templates), layers, tokens, flops))
    return Workload(
        model=decoder.name,
        num_layers=decoder.num_layers,
        parameters=sum(decoder_spec.sizes[0][: max(depths.values())]) + decoder_spec.sizes[2],
        passes=tuple(passes),
        texts={task: (count, sum(lengths) / len(lengths)) for task, (count, lengths) in texts.items()},
        missing={task: reason for task, reason in data.items() if isinstance(reason, str)},
        tflops=tflops,
        counted=decoder.words is not None,
        notes=tuple(notes),
    )


def texts_of(dataset: Any) -> list[str]:
    """Every text in the data of one of mteb's tasks, however deep it lies."""
    return list(_texts(dataset))


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        for inner in part.values():
            yield from _texts(inner)
        return
    for name in ("text", "sentence1", "sentence2"):
        if name in getattr(part, "column_names", ()):
            yield from part[name]


def _count(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,.0f}"


def _time(hours: float) -> str:
    if hours >= 0.95:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 3600 >= 60 else f"{hours * 3600:.2g} seconds"
