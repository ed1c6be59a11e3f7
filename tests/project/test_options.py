"""Keyword arguments that a function has no parameter for: a misspelt one is an error, before anything is loaded."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import valuembed
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.backbone.checkpoints import HubKwargs, HubOptions
from valuembed.corpus import EmbedOptions
from valuembed.corpus.embed_options import EmbedKwargs
from valuembed.errors import OptionError, RecipeError
from valuembed.research import plan
from valuembed.training import TrainSettings
from valuembed.training.settings import TrainKwargs

SOURCE = Path(valuembed.__file__).parent
FACES = sorted(SOURCE.rglob("__init__.pyi"))

CONFIGURATION = "fields of transformers' configurations, of any family"

ANY_NAME = {
    "valuembed.backbone.fingerprint": "settings, all of which count",
    "valuembed.readout.Readout.run": "inputs of the decoder",
    "valuembed.recipes.write_recipe": "notes, recorded beside a recipe",
    "valuembed.testing.tiny_causal_lm": CONFIGURATION,
    "valuembed.testing.tiny_checkpoint": CONFIGURATION,
    "valuembed.testing.tiny_config": CONFIGURATION,
    "valuembed.testing.tiny_decoder": CONFIGURATION,
}
"""Functions that take whatever they are given, and why."""


def _takes_others(function: Callable[..., Any]) -> bool:
    return any(entry.kind is entry.VAR_KEYWORD for entry in inspect.signature(function).parameters.values())


def _public(face: Path) -> dict[str, Callable[..., Any]]:
    """Functions of a face, and of its classes those methods that none of their foreign parents has, by name."""
    room = ".".join(("valuembed", *face.parent.relative_to(SOURCE).parts))
    found = {}
    for name in (alias.name for node in ast.walk(ast.parse(face.read_text())) for alias in getattr(node, "names", ())):
        entry = getattr(import_module(room), name)
        found[f"{room}.{name}"] = entry
        if inspect.isclass(entry):
            foreign = [parent for parent in entry.__mro__ if not parent.__module__.startswith("valuembed")]
            own = [key for key in vars(entry) if not any(hasattr(parent, key) for parent in foreign)]
            found |= {f"{room}.{name}.{key}": getattr(entry, key) for key in own if not key.startswith("_")}
    routines = {name: entry for name, entry in found.items() if inspect.isfunction(entry) or inspect.ismethod(entry)}
    return {name: entry for name, entry in routines.items() if _takes_others(entry)}


FOUND = {name: entry for face in FACES for name, entry in _public(face).items()}
TAKES_OPTIONS = {name: entry for name, entry in FOUND.items() if name not in ANY_NAME}


def test_the_collection_sees_them():
    seen = {name.removeprefix("valuembed.") for name in TAKES_OPTIONS}
    assert seen >= {"models.load", "models.MultiReadout.load", "models.info", "training.train", "research.plan"}
    assert seen >= {"evaluation.evaluate", "search.load_for", "backbone.checkpoints.locate", "analysis.sweep"}
    assert seen >= {"corpus.embed_corpus", "corpus.embed_corpus_on_ray"}
    assert ANY_NAME.keys() <= FOUND.keys()


MISSPELT = {False: ("local_file_only", "local_files_only"), True: ("row_per_shard", "rows_per_shard")}
"""A keyword and what is meant, for loading and for embedding a corpus."""


@pytest.mark.parametrize("name", TAKES_OPTIONS)
def test_a_misspelt_keyword_is_an_error_before_anything_is_looked_at(name):
    function = TAKES_OPTIONS[name]
    wrong, right = MISSPELT[".corpus." in name]
    entries = inspect.signature(function).parameters.values()
    # None of these can be used: whatever looks at them first raises something else.
    needed = {
        entry.name: object()
        for entry in entries
        if entry.default is entry.empty and entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)
    }
    with pytest.raises(OptionError) as told:
        function(**needed, **{wrong: True})
    assert re.search(rf"\b{wrong}\b.*; did you mean '{right}'\? legal: \w+(, \w+)+$", str(told.value))


def test_the_error_names_the_keyword_the_function_and_what_is_legal():
    with pytest.raises(OptionError) as told:
        plan("bundled", max_tokns=3, devise="cuda")
    assert str(told.value) == (
        "plan() has no option 'max_tokns'; did you mean 'max_tokens'? legal: backbone, model, local, rows, skip, "
        "tasks, tflops, revision, token, cache_folder, local_files_only, trust_remote_code, dtype, device, max_tokens, "
        "model_kwargs"
    )
    with pytest.raises(OptionError, match="did you mean 'output'"):
        valuembed.train(outptu="x", output="y")


def test_the_error_is_caught_as_python_raises_it():
    assert issubclass(OptionError, TypeError)
    assert issubclass(OptionError, RecipeError)


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        (HubKwargs, (HubOptions,)),
        (LoadKwargs, (LoadOptions,)),
        (TrainKwargs, (LoadOptions, TrainSettings)),
        (EmbedKwargs, (EmbedOptions,)),
    ],
)
def test_editors_are_told_the_same_names(kwargs, options):
    declared = {name: entry.type for of in options for name, entry in of.__dataclass_fields__.items()}
    assert {name: hint.__forward_arg__ for name, hint in kwargs.__annotations__.items()} == declared


def test_options_that_are_at_hand_hold_where_none_are_given():
    base = LoadOptions(device="cpu", revision="main")
    assert LoadOptions.of({"revision": "v2"}, valuembed.load, base) == LoadOptions(device="cpu", revision="v2")
    assert LoadOptions.of({}, valuembed.load).keywords() == {}
    assert LoadOptions.of({"revision": "v2", "token": None}, valuembed.load, base).keywords() == {
        "revision": "v2",
        "device": "cpu",
    }


def test_a_token_is_not_shown():
    assert "secret" not in repr(HubOptions(token="secret"))
