"""What a decoder is made of, as far as reading needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AttentionBlock:
    """One attention block that calls the registry.

    Attributes:
        layer: 0-based index of the decoder layer that holds it.
        path: module path inside the decoder, for example ``layers.3.self_attn``.
        query_heads, value_heads, head_width: h, g and d.
        projection: path of W_O, the linear map from ``h*d`` to ``m``; None where the block has no such map.
        norm: path of the norm that the block's output passes before it is added to the residual stream; None where it
            is added as it is.
        needs: keyword arguments of the attention call that a kernel must not drop (``s_aux``: sinks, ``softcap``).
        calls: how often it called the registry in one forward pass.
    """

    layer: int
    path: str
    query_heads: int
    value_heads: int
    head_width: int
    projection: str | None
    norm: str | None
    needs: frozenset[str]
    calls: int


@dataclass(frozen=True)
class DecoderSpec:
    """The parts of a decoder that reading needs to know.

    Attributes:
        architecture: name of the decoder's class in transformers.
        num_layers: L.
        model_width: m.
        layers_path: path of the list of decoder layers, for example ``layers`` or ``decoder.layers``.
        blocks: the attention blocks with values, by layer.
        tail: paths of the modules with weights that run after the last layer, such as the final norm.
        sizes: number of parameters of each layer, then of the tail, then of everything else (the embeddings).
        model_class: the class itself; None in what was read from a record, which is enough to tell of a decoder.
    """

    architecture: str
    num_layers: int
    model_width: int
    layers_path: str
    blocks: tuple[AttentionBlock, ...]
    tail: tuple[str, ...]
    sizes: tuple[tuple[int, ...], int, int]
    model_class: type[PreTrainedModel] | None = None

    @property
    def value_layers(self) -> tuple[int, ...]:
        """The 0-based layers whose attention values can be read."""
        return tuple(block.layer for block in self.blocks)

    def block(self, layer: int) -> AttentionBlock:
        """The attention block of a layer that has values."""
        return next(block for block in self.blocks if block.layer == layer)


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids a decoder has an embedding for."""
    embedding: Any = model.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])
