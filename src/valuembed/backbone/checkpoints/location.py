"""Where a model comes from.

Finding out what a name means imports neither torch nor transformers, so that a wrong one is said at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.backbone.checkpoints.hub_options import HubKwargs, HubOptions
from valuembed.backbone.checkpoints.misplaced_files import GGUF, check_file, few, is_gguf, models_below
from valuembed.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Unpack

BUNDLED = "bundled"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoadedFrom:
    """What a model was loaded from, as it may be recorded where others read it.

    Attributes:
        name: hub id, ``"bundled"``, or a folder's own name; never a path.
        revision: commit of a hub id, where known.
        is_folder: whether it was a folder of the machine, which others may not have.
    """

    name: str
    revision: str | None = None
    is_folder: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A place that holds a model, and the rights to read it.

    Attributes:
        name: as the user wrote it: a hub id, a folder, or ``"bundled"``.
        location: what transformers is given: a hub id or a folder.
        hub: keyword arguments for everything that may reach a hub.
        trust_remote_code: whether code that comes with the checkpoint may run.
    """

    name: str
    location: str
    hub: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.isdir(self.location)

    @property
    def public_name(self) -> str:
        """A name that is safe to record: a folder's own name, never its path."""
        # A folder may be named as ".".
        return Path(os.path.abspath(self.location)).name if self.is_local and self.name != BUNDLED else self.name

    @property
    def loaded_from(self) -> LoadedFrom:
        """What is recorded of a model that is loaded from here."""
        return LoadedFrom(self.public_name, self.commit, self.is_local and self.name != BUNDLED)

    @property
    def commit(self) -> str | None:
        """Commit of a hub id, as the hub's cache files it; None for a folder."""
        # The repository of an adapter may hold no other configuration than the adapter's.
        for filename in () if self.is_local else ("config.json", ADAPTER_CONFIG):
            if found := re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", self.file(filename) or ""):
                return found.group(1)
        return None

    def file(self, filename: str) -> str | None:
        """Local path of one of its files (downloaded if need be), or None where there is no such file.

        Raises:
            CheckpointError: the hub does not know the id, or refuses it, or cannot be reached; or a folder holds
                something else in the file's place.
        """
        if self.is_local:
            path = os.path.join(self.location, filename)
            check_file(self.name, path)
            return path if os.path.isfile(path) else None
        from transformers.utils.hub import cached_file

        try:
            return cached_file(self.location, filename, _raise_exceptions_for_missing_entries=False, **self.hub)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model {self.name!r}: {filename} cannot be fetched: {first_line(error)}") from error

    def has(self, filename: str) -> bool:
        """Whether it holds a file, found out without downloading it.

        Raises:
            CheckpointError: the hub does not know the id, or refuses it.
        """
        from transformers.utils.hub import has_file

        try:
            return bool(has_file(self.location, filename, **self.hub))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model {self.name!r}: {filename} cannot be fetched: {first_line(error)}") from error


def locate(
    model: str | os.PathLike[str],
    *,
    subfolder: str = "",
    options: HubOptions | None = None,
    **given: Unpack[HubKwargs],
) -> Checkpoint:
    """Find out what ``model`` names: ``"bundled"``, a folder, or a hub id.

    Args:
        model: the name.
        subfolder: of a repository.
        options: of the hub, where they are at hand.
        given: fields of :class:`HubOptions`.

    Raises:
        OptionError: a keyword argument that is unknown.
        CheckpointError: a path that does not exist, a file, or a folder that holds no model.
    """
    chosen = HubOptions.of(given, locate, options)
    name = os.fspath(model)
    hub = {
        "subfolder": subfolder,
        "revision": chosen.revision,
        "token": chosen.token,
        "cache_dir": chosen.cache_folder,
        "local_files_only": chosen.local_files_only,
    }
    if name == BUNDLED:
        return Checkpoint(BUNDLED, str(Path(__file__).parents[1] / BUNDLED))
    if os.path.isdir(name):
        if not any(os.path.lexists(os.path.join(name, file)) for file in ("config.json", ADAPTER_CONFIG)):
            raise _without_model(name)
    elif os.path.exists(name):
        raise CheckpointError(f"{name!r} is a file; {_in_place_of(name)}")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or ":" in name:
        raise CheckpointError(f"no folder {name!r}; {_meant(name)}")
    return Checkpoint(name, name, hub, chosen.trust_remote_code)


def _without_model(folder: str) -> CheckpointError:
    held = few(sorted(os.listdir(folder))) or "nothing"
    if below := models_below(folder):
        advice = f"; these folders in it hold one: {few([repr(path) for path in below])}"
    elif any(is_gguf(os.path.join(folder, file)) for file in os.listdir(folder)):
        advice = f"; {GGUF}"
    else:
        advice = ""
    return CheckpointError(
        f"folder {folder!r} holds no model: neither config.json nor {ADAPTER_CONFIG} in it (it holds {held}){advice}"
    )


def _in_place_of(file: str) -> str:
    """What to give in place of a file."""
    if is_gguf(file):
        return f"{GGUF}, a hub id, or {BUNDLED!r}"
    return f"give the folder that holds it ({os.path.dirname(file) or '.'}), a hub id, or {BUNDLED!r}"


def _meant(name: str) -> str:
    """What to give in place of a name that is neither a folder nor a hub id."""
    usual = f"give a folder that exists, a hub id such as Qwen/Qwen3-0.6B, or {BUNDLED!r}"
    if page := re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?", name):
        return f"give the hub id {page[1]!r}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+/+", name):
        return f"give a folder that exists, or the hub id {name.rstrip('/')!r}"
    if re.fullmatch(r"[\w./-]+:[\w.-]+", name):
        return f"a name with a tag, as Ollama has them, names a GGUF file: {usual}"
    return usual


def first_line(error: BaseException) -> str:
    """Type and first line of an error from below, for a message of one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
