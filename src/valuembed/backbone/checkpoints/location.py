"""Where a model comes from.

Finding out what a name means imports neither torch nor transformers, so that a wrong one is said at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.backbone.checkpoints.gguf_file import GgufFile, parts_of, read_gguf
from valuembed.backbone.checkpoints.hub_options import HubKwargs, HubOptions
from valuembed.backbone.checkpoints.misplaced_files import (
    check_file,
    few,
    find_fault,
    is_gguf,
    models_below,
)
from valuembed.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Unpack

BUNDLED = "bundled"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoadedFrom:
    """What a model was loaded from, as it may be recorded where others read it.

    Attributes:
        name: hub id, ``"bundled"``, or a folder's or a GGUF file's own name; never a path.
        revision: commit of a hub id, where known.
        is_folder: whether it was a folder or a file of the machine, which others may not have.
    """

    name: str
    revision: str | None = None
    is_folder: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A place that holds a model, and the rights to read it.

    Attributes:
        name: as the user wrote it: a hub id, a folder, a GGUF file, a hub id with one, or ``"bundled"``.
        location: what transformers is given: a hub id or a folder.
        hub: keyword arguments for everything that may reach a hub.
        trust_remote_code: whether code that comes with the checkpoint may run.
        gguf: name of the GGUF file there that is the model, its first part where it is split; None for a model of the
            usual files. Whatever else lies beside it is no part of the model.
    """

    name: str
    location: str
    hub: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    gguf: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.isdir(self.location)

    @property
    def public_name(self) -> str:
        """A name that is safe to record: a folder's or a GGUF file's own name, never its path."""
        # A folder may be named as ".", and a GGUF file lies in the folder that is read.
        return Path(os.path.abspath(self.name)).name if self.is_local and self.name != BUNDLED else self.name

    @property
    def loaded_from(self) -> LoadedFrom:
        """What is recorded of a model that is loaded from here."""
        return LoadedFrom(self.public_name, self.commit, self.is_local and self.name != BUNDLED)

    @property
    def commit(self) -> str | None:
        """Commit of a hub id, as the hub's cache files it; None for a folder."""
        # The repository of an adapter may hold no other configuration than the adapter's.
        told_by = ("config.json", ADAPTER_CONFIG) if self.gguf is None else (self.gguf,)
        for filename in () if self.is_local else told_by:
            if found := re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", self.file(filename) or ""):
                return found.group(1)
        return None

    def file(self, filename: str) -> str | None:
        """Local path of one of its files (downloaded if need be), or None where there is no such file.

        Raises:
            CheckpointError: the hub does not know the id, or refuses it, or cannot be reached; or a folder holds
                something else in the file's place.
        """
        if self.gguf is not None and filename not in parts_of(self.gguf):
            return None
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
        if self.gguf is not None and filename not in parts_of(self.gguf):
            return False
        from transformers.utils.hub import has_file

        try:
            return bool(has_file(self.location, filename, **self.hub))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model {self.name!r}: {filename} cannot be fetched: {first_line(error)}") from error

    def gguf_header(self) -> GgufFile:
        """What the model's GGUF file says of itself.

        Raises:
            CheckpointError: a part of it is missing, cut, damaged or something else.
        """
        assert self.gguf is not None, "a checkpoint of the usual files has no header"
        paths = {name: self.file(name) for name in parts_of(self.gguf)}
        if missing := [name for name, path in paths.items() if path is None]:
            raise CheckpointError(
                f"model {self.name!r} is split into {len(paths)} files, and not all are there: {few(missing)}; "
                "download them into the same folder"
                if len(paths) > 1
                else f"model {self.name!r}: {missing[0]} is not there"
            )
        return read_gguf(self.name, tuple(path for path in paths.values() if path is not None))


def locate(
    model: str | os.PathLike[str],
    *,
    subfolder: str = "",
    options: HubOptions | None = None,
    **given: Unpack[HubKwargs],
) -> Checkpoint:
    """Find out what ``model`` names: ``"bundled"``, a folder, a GGUF file, or a hub id, with such a file or without.

    Args:
        model: the name.
        subfolder: of a repository.
        options: of the hub, where they are at hand.
        given: fields of :class:`HubOptions`.

    Raises:
        OptionError: a keyword argument that is unknown.
        CheckpointError: a path that does not exist, another file, or a folder that holds no model, or several.
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
            return Checkpoint(name, name, {}, gguf=_only_gguf(name))
    elif os.path.exists(name):
        return Checkpoint(name, os.path.dirname(name) or ".", {}, gguf=_checked_gguf(name))
    elif with_file := re.fullmatch(r"([\w.-]+/[\w.-]+):([\w./-]+\.gguf)", name, re.IGNORECASE):
        return Checkpoint(name, with_file[1], hub, gguf=parts_of(with_file[2])[0])
    elif name.lower().endswith(".gguf"):
        raise CheckpointError(
            f"no file {name!r}; give the path of a GGUF file that exists, or a hub id with one, such as "
            "Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf"
        )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or ":" in name:
        raise CheckpointError(f"no folder {name!r}; {_meant(name)}")
    return Checkpoint(name, name, hub, chosen.trust_remote_code)


def _only_gguf(folder: str) -> str:
    """The one GGUF file of a folder without a model of the usual files: its first part, where it is split."""
    names = sorted(os.listdir(folder))
    found = list(dict.fromkeys(parts_of(name)[0] for name in names if is_gguf(os.path.join(folder, name))))
    # An image encoder lies beside the decoder that it belongs to.
    decoders = [name for name in found if "mmproj" not in name.lower()] or found
    if len(decoders) == 1:
        return decoders[0]
    if decoders:
        raise CheckpointError(
            f"folder {folder!r} holds several GGUF files ({few(decoders)}); give one of them, such as "
            f"{os.path.join(folder, decoders[0])}"
        )
    below = models_below(folder)
    advice = f"; these folders in it hold one: {few([repr(path) for path in below])}" if below else ""
    raise CheckpointError(
        f"folder {folder!r} holds no model: neither config.json nor {ADAPTER_CONFIG} in it, nor a GGUF file (it holds "
        f"{few(names) or 'nothing'}){advice}"
    )


def _checked_gguf(file: str) -> str:
    """The name of a GGUF file, of its first part where it is split; any other file is an error."""
    name = os.path.basename(file)
    # Files that cannot be opened show nothing, and neither do their names where they have none.
    if not is_gguf(file) and not (find_fault(file) and name.startswith("sha256-")):
        raise CheckpointError(
            f"{file!r} is a file and no GGUF file; give the folder that holds it ({os.path.dirname(file) or '.'}), a "
            f"GGUF file, a hub id, or {BUNDLED!r}"
        )
    return parts_of(name)[0]


def _meant(name: str) -> str:
    """What to give in place of a name that is neither a folder nor a hub id."""
    usual = f"give a folder that exists, a hub id such as Qwen/Qwen3-0.6B, or {BUNDLED!r}"
    if page := re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?", name):
        return f"give the hub id {page[1]!r}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+/+", name):
        return f"give a folder that exists, or the hub id {name.rstrip('/')!r}"
    if re.fullmatch(r"[\w./-]+:[\w.-]+", name):
        return (
            "a name with a tag is Ollama's; give the path of its GGUF file (`ollama show --modelfile` names it), a hub "
            "id with a file such as Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf, or a hub id or folder with safetensors"
        )
    return usual


def first_line(error: BaseException) -> str:
    """Type and first line of an error from below, for a message of one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
