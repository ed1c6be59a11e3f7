"""What a checkpoint's configuration comes to, kept on disk: a trace takes seconds of imports, and never changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from valuembed._utils.atomic import replace_text
from valuembed._utils.cache_folder import cache_folder
from valuembed.backbone.architecture import AttentionBlock, DecoderSpec
from valuembed.backbone.checkpoints import BUNDLED, Checkpoint, read_gguf_config
from valuembed.recipes import preset_for

BUNDLED_FACTS = Path(__file__).with_name("bundled_decoder.json")
"""The facts of the bundled model, beside its folder: what is in that decides its vectors."""

_MADE_BY = (
    "backbone/tracing.py",
    "backbone/checkpoints/config.py",
    "backbone/checkpoints/gguf_config.py",
    "backbone/architecture.py",
    "recipes/layers.py",
    "backbone/facts_cache.py",
)


@dataclass(frozen=True)
class DecoderFacts:
    """What :func:`valuembed.info` needs to know of a decoder.

    Attributes:
        decoder_spec: what it is made of; without the class when it was read from disk.
        preset: name of the preset made for this backbone, or None.
        dtype: the precision that its configuration names; None where only the weights know.
        vocabulary: rows of its embedding matrix.
        quantization: settings of the quantization that its weights are in, or None.
    """

    decoder_spec: DecoderSpec
    preset: str | None
    dtype: str | None
    vocabulary: int
    quantization: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        decoder_spec = asdict(self.decoder_spec)
        del decoder_spec["model_class"]
        decoder_spec["blocks"] = [{**block, "needs": sorted(block["needs"])} for block in decoder_spec["blocks"]]
        rest = ("preset", "dtype", "vocabulary", "quantization")
        return {"decoder_spec": decoder_spec, **{name: getattr(self, name) for name in rest}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderFacts:
        """Facts from plain data; a KeyError, TypeError or ValueError where it is something else."""
        decoder_spec = dict(data["decoder_spec"])
        layers, tail, rest = decoder_spec["sizes"]
        decoder_spec |= {
            "blocks": tuple(
                AttentionBlock(**{**one, "needs": frozenset(one["needs"])}) for one in decoder_spec["blocks"]
            ),
            "tail": tuple(decoder_spec["tail"]),
            "sizes": (tuple(layers), tail, rest),
        }
        return cls(DecoderSpec(**decoder_spec), data["preset"], data["dtype"], data["vocabulary"], data["quantization"])


def decoder_facts(checkpoint: Checkpoint) -> DecoderFacts:
    """Tell the facts of the decoder in a checkpoint, from disk where the same configuration was surveyed before.

    Args:
        checkpoint: that holds the decoder's weights.

    Raises:
        CheckpointError: its configuration cannot be read.
        UnsupportedModelError: its attention values cannot be read.
    """
    kept = kept_facts(checkpoint)
    if kept is not None:
        return kept
    facts = trace_facts(checkpoint)
    place = _place(checkpoint)
    if place is not None:
        _write(place, facts)
    return facts


def kept_facts(checkpoint: Checkpoint) -> DecoderFacts | None:
    """The facts of the decoder in a checkpoint where they are on disk, else None."""
    place = BUNDLED_FACTS if checkpoint.name == BUNDLED else _place(checkpoint)
    return _read(place) if place is not None else None


def trace_facts(checkpoint: Checkpoint) -> DecoderFacts:
    """Survey the decoder in a checkpoint; arguments and errors as in :func:`decoder_facts`."""
    from valuembed.backbone.checkpoints import read_config
    from valuembed.backbone.loading import checkpoint_dtype
    from valuembed.backbone.tracing import trace_architecture

    config = read_config(checkpoint)
    dtype = checkpoint_dtype(config)
    return DecoderFacts(
        trace_architecture(config, trust_remote_code=checkpoint.trust_remote_code),
        preset_for(config),
        None if dtype is None else str(dtype).removeprefix("torch."),
        config.vocab_size,
        getattr(config, "quantization_config", None),
    )


def _place(checkpoint: Checkpoint) -> Path | None:
    """The file for what is known of a checkpoint's configuration; None where it is not to be kept."""
    folder = cache_folder()
    if folder is None:
        return None
    if checkpoint.gguf is not None:
        config = json.dumps(read_gguf_config(checkpoint.gguf_header())).encode()
    elif (path := checkpoint.file("config.json")) is not None:
        config = Path(path).read_bytes()
    else:
        return None
    # Code of the checkpoint's own may change while its configuration stays.
    if b'"auto_map"' in config:
        return None
    return folder / "decoders" / f"{sha256(_versions() + config).hexdigest()}.json"


@cache
def _versions() -> bytes:
    """All that a trace depends on beside the configuration: this library's code for it, and that of the families."""
    digest = sha256(repr([_version(package) for package in ("transformers", "torch")]).encode())
    for name in _MADE_BY:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.digest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(place: Path) -> DecoderFacts | None:
    try:
        return DecoderFacts.from_dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, facts: DecoderFacts) -> None:
    """Keep facts, where the disk allows it: nothing depends on it but the time that the next call takes."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_text(place, json.dumps(facts.to_dict()))
    except OSError:
        return
