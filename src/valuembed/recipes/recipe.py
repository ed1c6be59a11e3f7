"""A recipe: the choices that say how one vector is read from a decoder.

Shapes in docstrings use one legend everywhere: b texts, t tokens, l layers, h query heads, g key/value heads,
d width of one value head, m model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal, TypeVar, get_args

from valuembed.errors import RecipeError
from valuembed.recipes.cleaning import CLEANINGS
from valuembed.recipes.layers import LayerSpec
from valuembed.recipes.templates import ROLES, resolve_templates
from valuembed.recipes.wording import RecipeWords, in_words

Signal = Literal["value", "hidden"]
Weights = Literal["mean", "last"]
Alignment = Literal["none", "projection", "residual"]
Span = Literal["text", "all"]
Centring = Literal["none", "general"]

_ROLES = (None, *ROLES)

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one vector is read from a decoder: choices that are checked against each other.

    A joined recipe has parts: itself and those of ``joined``. Each is read by itself, brought to length 1 and scaled by
    the root of its weight; the vector is all of them, one behind the other, so that a cosine is the weighted mean of
    theirs (ours).

    Attributes:
        method: the row of :data:`METHODS` it came from, or a name of the user's own. It decides nothing.
        signal: ``"value"``, the attention values ``v[l, g, n]``; ``"hidden"``, the residual stream after layer l.
        weights: ``"mean"``, the mean over the tokens of ``span``; ``"last"``, the last token's attention weights
            (for ``"hidden"``: the last token itself).
        alignment: the way a value goes towards the residual stream: ``"none"``, it stays in its heads;
            ``"projection"``, through the output projection W_O to the model width m; ``"residual"``, through all that
            stands between the heads and that stream: W_O, then the norm after the attention block where the decoder
            has one. Where it has none both are the same, and a loaded model's recipe says ``"projection"``. Values
            only.
        layers: what the mean over layers covers. None is the backbone's preset or the default depth; for ``"hidden"``,
            the last layer after the final norm. A loaded model's recipe holds absolute 0-based indices.
        template: template strings; with several, the raw vectors are averaged.
        query_template, document_template: the same for the two roles; None is ``template``.
        span: the tokens a mean covers: the text's own, or ``"all"`` that are fed.
        cleaning: what is done to a text before it goes into its template, by a name of
            :data:`valuembed.recipes.CLEANINGS`.
        centring: ``"general"``, the vector of length 1 without the mean of those of general sentences that come with
            this library, read once for each decoder; ``"none"``, as it is.
        weight: its share in a joined vector.
        joined: further parts. They share cleaning and span, and each has as many templates in one role as in another.

    Width of the vector: values raw, mean ``g*d``; values raw, last ``h*d``; anything aligned or hidden ``m``; the sum
    over its parts.
    """

    signal: Signal
    weights: Weights
    alignment: Alignment = "none"
    layers: LayerSpec = None
    template: tuple[str, ...] = ("{text}",)
    query_template: tuple[str, ...] | None = None
    document_template: tuple[str, ...] | None = None
    span: Span = "text"
    cleaning: str = "none"
    centring: Centring = "none"
    weight: float = 1.0
    joined: tuple[Recipe, ...] = ()
    method: str = "custom"

    def __post_init__(self) -> None:
        choices = {"signal": Signal, "weights": Weights, "alignment": Alignment, "span": Span, "centring": Centring}
        names = {name: get_args(legal) for name, legal in choices.items()}
        for name, legal in {**names, "cleaning": tuple(CLEANINGS)}.items():
            if getattr(self, name) not in legal:
                raise RecipeError(f"{name}={getattr(self, name)!r} is unknown; legal: {', '.join(legal)}")
        if self.aligned and self.signal == "hidden":
            raise RecipeError(
                f"signal='hidden' with alignment={self.alignment!r} means nothing: alignment brings attention values "
                "to the residual stream, and hidden states are that stream already"
            )
        if self.weights == "last" and self.span == "all":
            raise RecipeError("span='all' belongs to weights='mean'; weights='last' reads one token and has no span")
        for name in ("template", "query_template", "document_template"):
            given = getattr(self, name)
            if given is not None or name == "template":
                object.__setattr__(self, name, resolve_templates(given))
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)) or not 0 < self.weight < inf:
            raise RecipeError(f"weight={self.weight!r} has to be a number above 0")
        object.__setattr__(self, "joined", tuple(self.joined))
        if self.joined:
            _check_parts(self.parts)

    @property
    def parts(self) -> tuple[Recipe, ...]:
        """The recipes whose vectors are joined; the recipe alone where there is nothing to join."""
        return (replace(self, joined=()), *self.joined) if self.joined else (self,)

    @property
    def aligned(self) -> bool:
        """Whether values are brought to the residual stream, m wide, by whichever alignment."""
        return self.alignment != "none"

    @property
    def reads_final_norm(self) -> bool:
        """Whether a part is the last layer's hidden states after the final norm, which needs the whole decoder."""
        return any(part.signal == "hidden" and part.layers is None for part in self.parts)

    def templates_for(self, role: str | None) -> tuple[str, ...]:
        """The template strings for ``"query"``, ``"document"`` or no role: of all parts, each that they share once."""
        if not self.joined:
            per_role = {"query": self.query_template, "document": self.document_template}.get(role or "")
            return per_role if per_role is not None else self.template
        at = _ROLES.index(role) if role in _ROLES else 0
        return tuple(by_role[at] for by_role in self._sequences())

    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each part of a joined recipe, its templates' places in :meth:`templates_for`."""
        order = {by_role: place for place, by_role in enumerate(self._sequences())}
        return tuple(tuple(order[by_role] for by_role in part._by_role()) for part in self.parts)

    def _sequences(self) -> tuple[tuple[str, ...], ...]:
        """The templates of all parts, each in its three roles: two parts feed the same where all three are the same."""
        return tuple(dict.fromkeys(by_role for part in self.parts for by_role in part._by_role()))

    def _by_role(self) -> tuple[tuple[str, ...], ...]:
        return tuple(zip(*(self.templates_for(role) for role in _ROLES), strict=True))

    def describe(self) -> RecipeWords:
        """Put the recipe into words, for people to read."""
        return in_words(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``Recipe.from_dict(recipe.to_dict()) == recipe``."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return {**plain, "joined": [part.to_dict() for part in self.joined]}

    def choices(self) -> dict[str, Any]:
        """Plain data of what decides a vector, without what is left at its default.

        A field that a later version adds stays out of it until it is used, so it suits digests.
        """
        defaults = {field.name: field.default for field in fields(self)}
        plain = {**self.to_dict(), "joined": [part.choices() for part in self.joined]}
        return {name: plain[name] for name in plain if name != "method" and getattr(self, name) != defaults[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data, in which ``aligned`` may stand for ``alignment``: True is ``"projection"``.

        Raises:
            RecipeError: a key is unknown or missing.
        """
        if not isinstance(data, Mapping):
            raise RecipeError(f"a recipe is an object with signal and weights, got {data!r}")
        data = _with_alignment(data)
        legal = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - legal):
            raise RecipeError(
                f"a recipe has no {', '.join(map(repr, unknown))}; its fields are {', '.join(sorted(legal))}"
            )
        if missing := [name for name in ("signal", "weights") if name not in data]:
            raise RecipeError(f"a recipe needs {' and '.join(map(repr, missing))}, got only {sorted(data)}")
        parts = data.get("joined") or ()
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Iterable):
            raise RecipeError(f"joined={parts!r} has to be a list of recipes")
        return cls(**{**data, "joined": tuple(cls.from_dict(part) for part in parts)})


def _check_parts(parts: Sequence[Recipe]) -> None:
    """Raise where recipes cannot be parts of one vector."""
    for at, part in enumerate(parts):
        if part.joined:
            raise RecipeError("a part of a joined recipe cannot be joined itself; list all parts side by side")
        for name in ("cleaning", "span"):
            if (theirs := getattr(part, name)) != (ours := getattr(parts[0], name)):
                raise RecipeError(f"parts of a joined recipe share their {name}: one has {ours!r}, another {theirs!r}")
        counts = {len(part.templates_for(role)) for role in _ROLES}
        if len(counts) > 1:
            raise RecipeError(
                f"part {at} of a joined recipe has {' or '.join(map(str, sorted(counts)))} templates, as the role may "
                "be; a part has as many in one role as in another"
            )


def check_takes_parts(recipe: Recipe, asked: str) -> None:
    """Raise where a recipe has no vector of a part of a text that is run as a whole.

    Args:
        recipe: of a model.
        asked: what was asked for, for the error.

    Raises:
        RecipeError: it names what to use.
    """
    reason = _reads_no_parts(recipe)
    if recipe.cleaning != "none" and not reason:
        reason = f"has cleaning={recipe.cleaning!r}, which moves the places of a text's characters"
    _refuse(recipe, asked, reason)


def check_takes_tokens(recipe: Recipe, role: str | None = None) -> None:
    """Raise where a recipe has no vector of each token of a text.

    Args:
        recipe: of a model.
        role: ``"query"``, ``"document"`` or None: whose templates.

    Raises:
        RecipeError: it names what to use.
    """
    reason = _reads_no_parts(recipe)
    if (count := len(recipe.templates_for(role))) > 1 and not reason:
        reason = f"has {count} templates, in which a text may have other tokens"
    _refuse(recipe, "output_value='token_embeddings'", reason)


def _reads_no_parts(recipe: Recipe) -> str | None:
    if recipe.joined:
        return "joins several readouts, made for whole texts"
    if recipe.weights == "last":
        return "reads a text at its last token"
    return "has span='all', a mean over the template's tokens too" if recipe.span == "all" else None


def _refuse(recipe: Recipe, asked: str, reason: str | None) -> None:
    if reason:
        raise RecipeError(
            f"{asked}: method {recipe.method!r} {reason}; parts of a text are means over their own tokens: use va, "
            "aligned_va or hidden_mean"
        )


def group_by_tokens(recipes: Mapping[K, Recipe], role: str | None = None) -> list[list[K]]:
    """Find the recipes that feed the same tokens, and so share a forward pass.

    Args:
        recipes: by their names.
        role: ``"query"``, ``"document"`` or None: of what texts.

    Returns:
        Names, in the order given, by what they share.
    """
    shared: dict[tuple[object, ...], list[K]] = {}
    for name, recipe in recipes.items():
        # Those that read the last token have the span "text", and join the means over it.
        shared.setdefault((recipe.templates_for(role), recipe.cleaning, recipe.span), []).append(name)
    return list(shared.values())


def recipe_differences(
    one: Recipe | Mapping[str, Any], other: Recipe | Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare two recipes, field by field.

    Args:
        one, other: recipes, or what a version of this library recorded of them. A field that a record lacks has its
            default; one that this version does not know sets the record apart.

    Returns:
        Both values of each field that differs. The name of a method decides nothing, and is left out.
    """
    first, second = _plain(one), _plain(other)
    return {
        name: (first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if name != "method" and first.get(name) != second.get(name)
    }


def _plain(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data with all fields; as it stands where this version cannot read it."""
    if isinstance(recipe, Recipe):
        return recipe.to_dict()
    try:
        return Recipe.from_dict(recipe).to_dict()
    except (RecipeError, TypeError):
        return dict(recipe)


def _with_alignment(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Recorded recipes may hold a boolean where ``alignment`` has names."""
    if "aligned" not in data:
        return data
    rest = {name: value for name, value in data.items() if name != "aligned"}
    if not isinstance(data["aligned"], bool) or "alignment" in rest:
        raise RecipeError(
            f"aligned={data['aligned']!r} has to be True or False, and alignment left out; or give alignment alone: "
            f"{', '.join(get_args(Alignment))}"
        )
    return {**rest, "alignment": "projection" if data["aligned"] else "none"}
