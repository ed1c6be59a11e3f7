"""Optional dependencies: one import helper, whose error is the line that installs what is missing."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from valuembed.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import a module that only one of the extras installs.

    Args:
        module: dotted name of the module.
        extra: name of the extra in ``pyproject.toml`` that brings it.

    Raises:
        MissingExtraError: the module's package is not installed. A package that is there but fails while it is imported
            raises its own error, for installing it again would not help.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(f"{package} is not installed; run: {install_line(extra)}") from error


def install_line(extra: str) -> str:
    """The command that adds an extra to the package as it is installed here.

    A package that came from a folder, a file or a repository is not to be sought on an index: of that name it may hold
    nothing, or something else.

    Args:
        extra: its name in ``pyproject.toml``.
    """
    # Neither is cheap, and most runs lack nothing.
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    origin = _origin()
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        folder = Path(url2pathname(urlsplit(url).path))
        here = folder == Path.cwd()
        shown = "." if here else str(folder)
        constraints = folder / "constraints.txt"
        pinned = f"-c {_quoted('constraints.txt' if here else str(constraints))} " if constraints.is_file() else ""
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {pinned}{editable}"{shown}[{extra}]"'
    if vcs := origin.get("vcs_info"):
        return f'pip install "valuembed[{extra}] @ {vcs["vcs"]}+{url}@{vcs["commit_id"]}"'
    return f'pip install "valuembed[{extra}] @ {url}"' if url else f'pip install "valuembed[{extra}]"'


def _origin() -> dict[str, Any]:
    """What the package was installed from, as pip records it (PEP 610); empty where it came from an index."""
    from importlib import metadata

    try:
        recorded = metadata.distribution("valuembed").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        # It runs from a clone that was never installed.
        return {"url": Path(__file__).parents[3].as_uri(), "dir_info": {"editable": True}}
    return dict(json.loads(recorded)) if recorded else {}


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
