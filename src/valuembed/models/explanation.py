"""What each token of a text counts for in the vector of a method that weighs tokens by the last one's attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valuembed._utils.text import inflected
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import Plan
from valuembed.data import as_text, check_prompt, check_text
from valuembed.errors import InputError, LayerError, RecipeError
from valuembed.models.attention_weights import read_attention_weights
from valuembed.models.value_reader import ValueReader
from valuembed.recipes import CLEANINGS, METHODS, Recipe, named_layers
from valuembed.reporting import plots
from valuembed.tokenization import TokenSequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from valuembed.models.encoder import ValueEncoder
    from valuembed.models.text_encoder import TextEncoder

BY = ("attention", "contribution")
"""What a weight may be: see :attr:`TokenWeights.weights`."""

_DECIMALS = 6


@dataclass(frozen=True)
class Token:
    """One token of a sequence that is fed.

    Attributes:
        text: the characters that it adds. Of a token that adds none its name, such as ``<s>``; or nothing where it is
            a later byte of a character that takes several tokens.
        start, end: where its characters stand in :attr:`TokenWeights.string`, in Unicode code points; alike where it
            has none.
        is_text: whether it is the text's own, not the template's; of the later copy, where a template has two.
    """

    text: str
    start: int
    end: int
    is_text: bool


@dataclass(frozen=True)
class TokenWeights:
    """What each token of one sequence counts for.

    Attributes:
        tokens: t tokens, template included.
        layers: l absolute layers, which the method averages over.
        weights: ``[l, h, t]`` float32. By attention, the weight that the last token gives to each token; those of a
            head add up to 1, or to less where the model has sinks, which take the rest. By contribution, the length of
            what each token adds to the layer's weighted values, that is, weight times length of the value, as a share:
            the mean over the heads of a layer adds up to 1.
        truncated: whether tokens of the text were cut away.
    """

    tokens: tuple[Token, ...]
    layers: tuple[int, ...]
    weights: NDArray[np.float32]
    truncated: bool

    @property
    def string(self) -> str:
        """The characters that are fed, template included."""
        return "".join(token.text for token in self.tokens if token.end > token.start)

    def visible(self) -> list[list[int]]:
        """Positions of the tokens, those that spell one character together in one list."""
        groups: list[list[int]] = []
        for number, token in enumerate(self.tokens):
            if groups and not token.text:
                groups[-1].append(number)
            else:
                groups.append([number])
        return groups

    def by_layer(self) -> NDArray[np.float32]:
        """``[l, t]``, the mean over the heads."""
        found: NDArray[np.float32] = self.weights.mean(axis=1)
        return found

    def mean(self) -> NDArray[np.float32]:
        """``[t]``, the mean over heads and layers."""
        found: NDArray[np.float32] = self.weights.mean(axis=(0, 1))
        return found

    def full(self) -> float:
        """The weight that pictures show in full colour: 99 in 100 of the layers' weights of the text's tokens are less.

        The first token of a sequence does not count: many decoders give it most of the weight, whatever the text is.
        Nor does the template, whose end often weighs more than any token of the text.
        """
        counted = [number for number, token in enumerate(self.tokens) if token.is_text and number]
        weights = self.by_layer()
        # Windows may hide all of a text.
        return float(np.quantile(weights[:, counted or slice(None)], 0.99) or weights.max())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: for each token the mean weight, and that of each layer over its heads."""
        means, layers = self.mean().astype(float), self.by_layer().T.astype(float)
        return {
            "truncated": self.truncated,
            "full": round(self.full(), _DECIMALS),
            "tokens": [
                {
                    "text": token.text,
                    "start": token.start,
                    "end": token.end,
                    "is_text": token.is_text,
                    "weight": round(weight, _DECIMALS),
                    "by_layer": [round(value, _DECIMALS) for value in of_layers],
                }
                for token, weight, of_layers in zip(self.tokens, means.tolist(), layers.tolist(), strict=True)
            ],
        }


@dataclass(frozen=True)
class Explanation:
    """Token weights of one text.

    Attributes:
        model: its name.
        method: the method's name.
        layers: l absolute layers.
        by: one of :data:`BY`.
        sequences: of each of the method's templates; the vector is the mean of theirs.
    """

    model: str
    method: str
    layers: tuple[int, ...]
    by: str
    sequences: tuple[TokenWeights, ...]

    @property
    def title(self) -> str:
        """What is shown, in one line."""
        what = "attention of the last token" if self.by == BY[0] else "share in the last token's weighted values"
        return f"{self.model}, {self.method}, {named_layers(self.layers)}: {what}, mean over heads"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "method": self.method,
            "layers": list(self.layers),
            "by": self.by,
            "sequences": [sequence.to_dict() for sequence in self.sequences],
        }

    def figure(self) -> Figure:
        """The weights as a picture, layers by tokens, the template's tokens set apart.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return plots.token_weights(
            [
                (
                    [token.text for token in sequence.tokens],
                    [token.is_text for token in sequence.tokens],
                    sequence.by_layer(),
                )
                for sequence in self.sequences
            ],
            rows=[str(layer) for layer in self.layers],
            full=max(sequence.full() for sequence in self.sequences),
            title=self.title,
        )


@default_device_and_precision()
def explain(
    model: ValueEncoder | TextEncoder | ValueReader,
    text: str,
    *,
    by: str = BY[0],
    prompt: str | None = None,
    role: str | None = None,
    plan: Plan | None = None,
) -> Explanation:
    """Tell what each token of a text counts for in its vector.

    One pass for each template, with the model's own templates, layers and token limit. The attention that is read is
    what the vector is made with: the weighted sum of a layer's values is that layer's WVA.

    Args:
        model: what :func:`valuembed.load` returns for a method that weighs values by attention, or its reader.
        text: the text, not blank.
        by: ``"attention"`` or ``"contribution"``, see :attr:`TokenWeights.weights`.
        prompt: an instruction.
        role: ``"query"``, ``"document"`` or None: whose templates.
        plan: what is read, such as one of several recipes on a decoder; None is the model's own.

    Raises:
        InputError: the text or the prompt is no text, or the text is blank.
        RecipeError: ``by`` is unknown, or the method weighs all tokens alike or reads hidden states.
        LayerError: the layers differ in their number of heads.
        ReadingError, UnsupportedModelError: as :func:`valuembed.models.attention_weights.read_attention_weights`.
    """
    if by not in BY:
        raise RecipeError(f"by={by!r} is unknown; legal: {', '.join(BY)}")
    text = as_text(text)
    if reason := check_text(text):
        raise InputError(f"the text cannot be explained: it is {reason}; give one string")
    check_prompt(prompt)
    if not text.strip():
        raise InputError(f"the text {text!r:.80} is blank, so there is nothing to explain")
    reader = model if isinstance(model, ValueReader) else model.reader
    # Of a joined recipe the first part is shown.
    plan = (plan or reader.plan).parts[0]
    recipe, decoder_spec, layers = plan.recipe, plan.decoder_spec, plan.layers
    _check_weighs(recipe)
    heads = {decoder_spec.block(layer).query_heads for layer in layers}
    if len(heads) > 1:
        raise LayerError(
            f"{named_layers(layers)} {inflected(len(layers), 'has', 'have')} {' or '.join(map(str, sorted(heads)))} "
            "heads, and cannot be shown together; choose layers of one kind"
        )
    reader.eval()
    cleaned = CLEANINGS[recipe.cleaning](text)
    sequences = []
    for template in recipe.templates_for(role):
        row, pieces = reader.texts.pieces(cleaned, template, prompt or "", max_tokens=reader.max_tokens)
        reader.texts.check([row], template)
        read = read_attention_weights(reader.model, decoder_spec, layers, row.ids)
        weights = torch.stack([_weights(*pair, by) for pair in read]).numpy()
        tokens = _tokens(row, pieces, reader.texts.names(row.ids))
        sequences.append(TokenWeights(tokens, layers, weights, row.truncated))
    return Explanation(reader.origin.name, recipe.method, layers, by, tuple(sequences))


def _check_weighs(recipe: Recipe) -> None:
    """Raise where no attention decides what a token counts for."""
    if recipe.signal == "value" and recipe.weights == "last":
        return
    legal = ", ".join(name for name, row in METHODS.items() if (row.signal, row.weights) == ("value", "last"))
    if recipe.signal == "hidden":
        reason = "reads hidden states, in which no weights of tokens can be told apart"
    else:
        reason = f"gives {recipe.describe().tokens} the same weight each, so there is nothing to show"
    raise RecipeError(f"method {recipe.method!r} {reason}; methods that weigh tokens: {legal}")


def _weights(attention: Tensor, lengths: Tensor, by: str) -> Tensor:
    """``[h, t]`` weights of a layer, from its attention and the lengths of its values, both ``[h, t]``."""
    if by == BY[0]:
        return attention
    contributions = attention * lengths
    return contributions * len(contributions) / contributions.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _tokens(row: TokenSequence, pieces: Sequence[str], names: Sequence[str]) -> tuple[Token, ...]:
    """Tokens from what each adds, and from what those that add nothing are called."""
    found, end = [], 0
    for number, (piece, name) in enumerate(zip(pieces, names, strict=True)):
        start, end = end, end + len(piece)
        found.append(Token(piece or name, start, end, row.span[0] <= number < row.span[1]))
    return tuple(found)
