"""Which layers a recipe reads: every way to name them, turned into checked 0-based indices.

Pure Python: the layers that hold values are given, nothing here looks at a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from valuembed._utils.text import counted, inflected
from valuembed.errors import LayerError

LayerSpec = int | float | str | Sequence[int] | Sequence[float] | None
"""What a user may write for ``layers=``; :func:`resolve_layers` lists the forms."""

DEFAULT_LAYERS = "third"
"""The layers that value recipes read without preset, by name. Ours, not the paper's: of eight ranges on the development
sets of three pretrained decoders, its mean over the value methods was best or as good (``benchmarks/real.md``).
"""


@dataclass(frozen=True)
class LayerPreset:
    """Layers chosen in the source for one backbone, and how that backbone is recognised.

    ``match`` holds configuration fields that all have to be equal, so that a local copy or a
    fine-tuned descendant of the backbone is recognised as well as its hub id.
    """

    layers: tuple[int, ...]
    match: Mapping[str, Any]


# The paper does not say whether it counts from 0 or from 1; its layers are taken as 0-based.
PRESETS: dict[str, LayerPreset] = {
    "llama-2-7b": LayerPreset(
        layers=tuple(range(20, 28)),
        match={
            "model_type": "llama",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
    ),
    "qwen-3-8b": LayerPreset(
        layers=(26, 27, 29, 30, 31),
        match={
            "model_type": "qwen3",
            "num_hidden_layers": 36,
            "hidden_size": 4096,
            "num_key_value_heads": 8,
        },
    ),
    # Ours: select-layers on 700 pairs of STSb dev, for AlignedWVA; better for the other value methods too.
    "smollm2-135m": LayerPreset(
        layers=(7, 19, 21, 22, 23, 25, 27, 29),
        match={
            "model_type": "llama",
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
        },
    ),
}
"""Made by ``valuembed select-layers`` where it is ours; where the default is as good, as on Gemma 3 270M and
Qwen2.5-Coder-0.5B, there is none.
"""

_FORMS = (
    'a list of 0-based indices, "all", "half", "third", "last", "last-2", a range such as "20:28", a fraction of the '
    'depth such as 0.75, a range of fractions such as "0.65:0.9", or a preset ({presets})'
)


def preset_for(config: object) -> str | None:
    """The name of the preset made for this backbone's configuration, or None."""
    for name, preset in PRESETS.items():
        if all(getattr(config, field, None) == value for field, value in preset.match.items()):
            return name
    return None


def resolve_layers(
    spec: LayerSpec, legal: Sequence[int], num_layers: int, preset: str | None = None
) -> tuple[int, ...]:
    """Turn a user's ``layers=`` into sorted absolute indices that are all legal.

    Args:
        spec: None (``preset`` if there is one, else :data:`DEFAULT_LAYERS`); ``"all"``; ``"half"``, the second half
            of the legal layers; ``"third"``, those of the last third of the depth, at least the last legal one;
            ``"last"``, the last legal one, ``"last-2"`` the second before it among these, or the first; an index or a
            list of indices, negative ones counting from the end; ``"20:28"``, end exclusive;
            ``"20,22,24"``; a fraction of the depth between 0.0 and 1.0, or a list of them; ``"0.65:0.9"``, all legal
            layers l with ``lo <= l/L < hi``; or the name of a preset.
        legal: the 0-based indices that hold the signal. Names and fractions select among these; an index that is
            not among them is an error.
        num_layers: L, the number of layers of the whole decoder.
        preset: the preset of this backbone, used when ``spec`` is None.

    Raises:
        LayerError: the form is unknown, an index is not legal or given twice, or nothing is selected.
    """
    legal = tuple(sorted(legal))
    if isinstance(spec, tuple):
        spec = list(spec)
    if not legal:
        raise LayerError(f"layers={spec!r}: none of the {counted(num_layers, 'layer')} of this model can be read")
    if spec is None:
        spec = preset or DEFAULT_LAYERS
    chosen = _from_name(spec, legal, num_layers) if isinstance(spec, str) else _from_numbers(spec, legal, num_layers)
    if not chosen:
        raise LayerError(f"layers={spec!r} selects no layer; {_told(legal)}")
    if len(set(chosen)) != len(chosen):
        raise LayerError(f"layers={spec!r} names a layer twice; it means {list(chosen)}")
    if missing := [layer for layer in chosen if layer not in legal]:
        raise LayerError(
            f"layers={spec!r}: {named_layers(missing)} cannot be read in this model of {counted(num_layers, 'layer')}; "
            f"{_told(legal)}"
        )
    return tuple(sorted(chosen))


def describe(layers: Sequence[int]) -> str:
    """Indices as a person writes them: runs of neighbours as ``a-b``, joined by commas."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def named_layers(layers: Sequence[int]) -> str:
    """Indices behind their noun: ``layer 17``, ``layers 8-10``."""
    return f"{inflected(len(layers), 'layer')} {describe(layers)}"


def _told(legal: Sequence[int]) -> str:
    return f"{inflected(len(legal), 'the only legal layer is', 'legal layers are')} {describe(legal)}"


def _from_name(spec: str, legal: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    name = spec.strip().lower()
    if name == "all":
        return legal
    if name == "half":
        return legal[len(legal) // 2 :]
    if name == "third":
        return tuple(layer for layer in legal if 3 * layer >= 2 * num_layers) or legal[-1:]
    if before := re.fullmatch(r"last(?:-(\d+))?", name):
        return (legal[max(0, len(legal) - 1 - int(before[1] or 0))],)
    if name in PRESETS:
        return PRESETS[name].layers
    try:
        if ":" in name:
            return _from_range(name, legal, num_layers)
        numbers = [_number(part) for part in name.split(",")]
    except ValueError:
        forms = _FORMS.format(presets=", ".join(PRESETS))
        raise LayerError(f"layers={spec!r} is not understood; give {forms}") from None
    return _from_numbers(numbers, legal, num_layers)


def _from_range(name: str, legal: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    low_text, high_text = name.split(":")
    if "." in name:
        low = float(low_text) if low_text else 0.0
        high = float(high_text) if high_text else 1.0
        return tuple(layer for layer in legal if low <= layer / num_layers < high)
    low_index = int(low_text) if low_text else 0
    high_index = int(high_text) if high_text else num_layers
    # Not a Python slice: bounds beyond the model are a mistake to report, not one to clip in silence.
    low_index += num_layers if low_index < 0 else 0
    high_index += num_layers if high_index < 0 else 0
    return tuple(range(low_index, high_index))


def _from_numbers(spec: Any, legal: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    numbers = list(spec) if isinstance(spec, Sequence) else [spec]
    chosen = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            forms = _FORMS.format(presets=", ".join(PRESETS))
            raise LayerError(f"layers={spec!r}: {number!r} is not a layer; give {forms}")
        if isinstance(number, float):
            if not 0.0 <= number <= 1.0:
                raise LayerError(f"layers={spec!r}: the fraction {number} is not between 0.0 and 1.0")
            chosen.append(legal[round(number * (len(legal) - 1))])
        else:
            chosen.append(number + num_layers if -num_layers <= number < 0 else number)
    return tuple(chosen)


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
