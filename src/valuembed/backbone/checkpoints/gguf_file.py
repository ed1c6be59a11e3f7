"""What a GGUF file says of itself: its settings, and where each tensor lies. No tensor is read here.

A file is a header, pairs of names and values, a table of tensors, and behind it their bytes. The vocabulary is one of
the values, and most of what stands before the tensors; it is stepped over, and read where it is asked for.

Source: llama.cpp's ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

from valuembed._utils.text import counted, printable, shortened
from valuembed.backbone.checkpoints.gguf_types import TYPES, GgufType, gguf_type_name
from valuembed.backbone.checkpoints.misplaced_files import GGUF_MAGIC, few, find_fault
from valuembed.errors import CheckpointError

_VERSIONS = (2, 3)
_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMS = 4
_LONGEST_NAME = 1 << 16

_PART = re.compile(r"(?P<stem>.+)-(?P<at>\d{5})-of-(?P<all>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)
"""How the parts of a file that was split are named."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: slowest dimension first, as torch has it.
        code: of the type of its numbers.
        path: of the file that holds it.
        offset: its first byte in that file.
        size: in bytes; 0 where the type is none that is read.
    """

    shape: tuple[int, ...]
    code: int
    path: str
    offset: int
    size: int

    @property
    def type(self) -> GgufType:
        """The type of its numbers, which has to be one that is read."""
        return TYPES[self.code]


@dataclass(frozen=True)
class GgufStrings:
    """Texts in a file, which are not read before they are asked for.

    Attributes:
        path: of the file.
        offset: of the first text's length.
        count: how many texts there are.
    """

    path: str
    offset: int
    count: int

    def read(self) -> list[str]:
        """The texts; bytes that are no UTF-8 become the character that stands for these."""
        texts: list[str] = []
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            at, length = self.offset, struct.Struct("<Q").unpack_from
            for _ in range(self.count):
                start = at + 8
                at = start + length(held, at)[0]
                texts.append(held[start:at].decode("utf-8", "replace"))
        return texts


@dataclass(frozen=True)
class GgufFile:
    """A model in one GGUF file, or in the parts of one.

    Attributes:
        name: as the user wrote it, for errors.
        paths: of its files on this machine, the one with the settings first.
        settings: by their names; a list of texts is a :class:`GgufStrings`.
        tensors: by llama.cpp's names.
    """

    name: str
    paths: tuple[str, ...]
    settings: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return str(self.settings["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """A setting of the family, named without it."""
        return self.settings.get(f"{self.architecture}.{key}", default)

    def types(self) -> list[str]:
        """The types that its matrices are packed in, those of most bytes first."""
        taken: dict[str, int] = {}
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                name = gguf_type_name(tensor.code)
                taken[name] = taken.get(name, 0) + prod(tensor.shape)
        return sorted(taken, key=lambda name: (-taken[name], name))


def parts_of(filename: str) -> list[str]:
    """The names of all parts of a file that was split, the first one first; of any other file its own name."""
    part = _PART.fullmatch(filename)
    if part is None:
        return [filename]
    return [
        f"{part['stem']}-{number:05d}-of-{part['all']}{part['ending']}" for number in range(1, int(part["all"]) + 1)
    ] or [filename]


def read_gguf(name: str, paths: tuple[str, ...]) -> GgufFile:
    """Read what a model in GGUF files says of itself.

    Args:
        name: as the user wrote it, for errors.
        paths: of its files on this machine, the one with the settings first.

    Raises:
        CheckpointError: a file cannot be opened, is cut, damaged or something else, or is a part of another model.
    """
    read = []
    for path in paths:
        if fault := find_fault(path):
            raise CheckpointError(f"model {name!r}: {os.path.basename(path)} {fault}")
        state = os.stat(path)
        try:
            # A file that was written anew is read anew.
            settings, tensors = _read(path, state.st_size, state.st_mtime_ns)
        except _DamagedError as error:
            raise CheckpointError(f"model {name!r}: {os.path.basename(path)} {error}") from error
        read.append((path, settings, tensors))
    settings = read[0][1]
    held: dict[str, GgufTensor] = {}
    for at, (path, own, tensors) in enumerate(read):
        if own.get("split.count", len(read)) not in (len(read), 0) or own.get("split.no", at) != at:
            raise CheckpointError(
                f"model {name!r}: {os.path.basename(path)} says that it is part {own.get('split.no', 0) + 1} of "
                f"{own.get('split.count')}; give the parts the names that they were made with"
            )
        held |= {key: replace(tensor, path=path) for key, tensor in tensors.items()}
    if (counted_there := settings.get("split.tensors.count", len(held))) != len(held):
        raise CheckpointError(
            f"model {name!r}: its parts hold {counted(len(held), 'tensor')} and should hold {counted_there:,}, so they "
            "are not of one model; download them again"
        )
    if not isinstance(settings.get("general.architecture"), str):
        raise CheckpointError(
            f"model {name!r}: {os.path.basename(paths[0])} does not say of which family it is (general.architecture); "
            "give a file that holds a whole model"
        )
    return GgufFile(name, paths, settings, held)


class _DamagedError(Exception):
    """What is wrong with a file, as the end of a sentence."""


@lru_cache(maxsize=8)
def _read(path: str, size: int, changed: int) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    with _opened(path) as held:
        if held[:4] != GGUF_MAGIC:
            raise _DamagedError(f"is no GGUF file: it begins with {held[:4]!r}; give a GGUF file, or a folder")
        try:
            return _parse(path, held, size)
        except (struct.error, IndexError, OverflowError) as error:
            raise _cut(size) from error


def _cut(size: int) -> _DamagedError:
    return _DamagedError(f"is cut: it ends after {counted(size, 'byte')}, before what it announces; download it again")


def _parse(path: str, held: mmap.mmap, size: int) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    _check_version(held)
    many_tensors, many_settings = struct.unpack_from("<QQ", held, 8)
    if max(many_tensors, many_settings) > size:
        raise _DamagedError(
            f"is cut or damaged: it ends after {counted(size, 'byte')} and announces "
            f"{many_tensors:,} tensors; download it again"
        )
    at = 24
    settings: dict[str, Any] = {}
    for _ in range(many_settings):
        key, at = _text(held, at, size)
        kind = struct.unpack_from("<I", held, at)[0]
        settings[key], at = _value(path, held, at + 4, kind, key, size)
    table = []
    for _ in range(many_tensors):
        key, at = _text(held, at, size)
        many = struct.unpack_from("<I", held, at)[0]
        if many > _MOST_DIMS:
            raise _DamagedError(f"is damaged: its tensor {_shown(key)} has {many:,} dimensions; download it again")
        dims = struct.unpack_from(f"<{many}Q", held, at + 4)
        code, offset = struct.unpack_from("<IQ", held, at + 4 + 8 * many)
        at += 16 + 8 * many
        table.append((key, tuple(reversed(dims)), code, offset))
    alignment = settings.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _DamagedError(f"is damaged: general.alignment is {alignment!r}; download it again")
    start = -(-at // alignment) * alignment
    tensors = {key: _tensor(path, key, shape, code, start + offset) for key, shape, code, offset in table}
    if cut := [key for key, tensor in tensors.items() if tensor.offset + tensor.size > size]:
        raise _DamagedError(
            f"is cut: it ends after {counted(size, 'byte')}, and {counted(len(cut), 'tensor')} of {len(tensors):,} "
            f"should lie behind that ({few([_shown(key) for key in cut])}); download it again"
        )
    return settings, tensors


def _check_version(held: mmap.mmap) -> None:
    version: int = struct.unpack_from("<I", held, 4)[0]
    if version in _VERSIONS:
        return
    swapped: int = struct.unpack_from(">I", held, 4)[0]
    if swapped in _VERSIONS:
        raise _DamagedError(
            "is big-endian, and only little-endian GGUF files are read; convert it with gguf-py's "
            "gguf_convert_endian, or download the usual file"
        )
    if version == 1:
        raise _DamagedError("is GGUF of version 1, and versions 2 and 3 are read; download a newer file of the model")
    raise _DamagedError(f"is GGUF of version {version:,}, and versions 2 and 3 are read; download another file")


def _tensor(path: str, key: str, shape: tuple[int, ...], code: int, offset: int) -> GgufTensor:
    kind = TYPES.get(code)
    if kind is None:
        return GgufTensor(shape, code, path, offset, 0)
    if not shape or shape[-1] % kind.block:
        raise _DamagedError(
            f"is damaged: its tensor {_shown(key)} of shape {shape} is no whole number of {kind.name}'s blocks of "
            f"{kind.block}; download it again"
        )
    return GgufTensor(shape, code, path, offset, prod(shape) // kind.block * kind.size)


def _value(path: str, held: mmap.mmap, at: int, kind: int, key: str, size: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _text(held, at, size, longest=size)
    if kind == _ARRAY:
        inner, count = struct.unpack_from("<IQ", held, at)
        at += 12
        if count > size:
            raise _cut(size)
        if inner == _STRING:
            first, length = at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + length(held, at)[0]
            if at > size:
                raise _cut(size)
            return GgufStrings(path, first, count), at
        if inner in _SCALARS:
            layout = struct.Struct(f"<{count}{_SCALARS[inner]}")
            return list(layout.unpack_from(held, at)), at + layout.size
        kind = inner
    if kind not in _SCALARS:
        raise _DamagedError(f"is damaged: its setting {_shown(key)} is of the unknown type {kind:,}; download it again")
    layout = struct.Struct(f"<{_SCALARS[kind]}")
    return layout.unpack_from(held, at)[0], at + layout.size


def _text(held: mmap.mmap, at: int, size: int, longest: int = _LONGEST_NAME) -> tuple[str, int]:
    length = struct.unpack_from("<Q", held, at)[0]
    at += 8
    if at + length > size:
        raise _cut(size)
    if length > longest:
        raise _DamagedError(f"is damaged: a name in it has {length:,} bytes; download it again")
    return held[at : at + length].decode("utf-8", "replace"), at + length


def _shown(key: str) -> str:
    return shortened(printable(key), 60)


@contextmanager
def _opened(path: str) -> Iterator[mmap.mmap]:
    try:
        with open(path, "rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _DamagedError(f"cannot be opened: {reason}") from error
    with held:
        yield held
