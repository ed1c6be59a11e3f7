"""Texts that stand on the command line or come from a pipe, where ``-`` is the standard input."""

import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from valuembed.data import COMPRESSIONS, FILE_KINDS, check_text
from valuembed.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDIN = "-"
TEXTS_PER_CALL = 1024

_FILE_NAMES = re.compile(
    rf"\S({'|'.join(map(re.escape, [*FILE_KINDS, *COMPRESSIONS, '.json', '.xlsx', '.docx', '.pdf']))})$", re.IGNORECASE
)


def given_text(text: str) -> str:
    """A text of the command line; of ``-``, all of the standard input.

    Raises:
        InputError: the standard input is blank, or no UTF-8.
    """
    if text != STDIN:
        return text
    content = _decoded(sys.stdin.buffer.read(), "stdin").removeprefix("\ufeff").rstrip("\r\n")
    if not content.strip():
        raise InputError("stdin holds no text")
    return content


def given_texts(texts: Sequence[str]) -> list[str]:
    """Texts of the command line; in place of ``-`` stand the lines of the standard input.

    Raises:
        InputError: a line cannot be used, or there is none.
    """
    found: list[str] = []
    for text in texts:
        if text == STDIN:
            found += _lines()
        else:
            found.append(text)
    return found


def _lines() -> Iterator[str]:
    content = sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf")
    lines = content.splitlines()
    if not lines:
        raise InputError("stdin holds no text")
    for number, line in enumerate(lines, start=1):
        text = _decoded(line, f"stdin, line {number}")
        if reason := check_text(text) or (None if text.strip() else "blank"):
            raise InputError(
                f"stdin, line {number}, is {reason}; a file sets such lines aside: valuembed embed - -o OUT.parquet"
            )
        yield text


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not valid UTF-8: byte 0x{content[error.start]:02x} at byte {error.start}; convert it first"
        ) from None


def check_are_texts(inputs: Sequence[str]) -> None:
    """Raise where an argument is a file, or looks like the name of one: without an output, arguments are texts.

    Raises:
        InputError: with what to do.
    """
    for given in inputs:
        if given == STDIN:
            continue
        if reason := check_text(given) or (None if given.strip() else "blank"):
            raise InputError(f"the text {given!r:.80} is {reason}")
        if _is_there(given):
            raise InputError(
                f"{given} is a file or a folder; name where its embeddings go: -o OUT.parquet, or -o FOLDER"
            )
        if _FILE_NAMES.search(given) or (re.search(r"[/\\]", given) and not re.search(r"\s", given)):
            raise InputError(
                f"there is no file {given}; if it is a text to be embedded, give it through a pipe: "
                "echo TEXT | valuembed embed -"
            )


def _is_there(given: str) -> bool:
    try:
        return Path(given).exists()
    except (OSError, ValueError):
        return False


@contextmanager
def as_file(input: str) -> Iterator[str]:
    """An input that can be read more than once: the standard input's lines, copied into a file, or the input itself."""
    if input != STDIN:
        yield input
        return
    with tempfile.TemporaryDirectory(prefix="valuembed-") as folder:
        path = Path(folder, "stdin.txt")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, io.DEFAULT_BUFFER_SIZE)
        yield str(path)


def print_vectors(
    encoder: Any, texts: Sequence[str], *, as_query: bool, precision: str, dim: int | None, as_json: bool
) -> None:
    """Embed texts and print a line for each: numbers between blanks, or a JSON object with the text.

    Raises:
        InputError: vectors are not as wide as is asked for.
    """
    import numpy as np

    from valuembed.vectors import pack, shorten

    width = encoder.get_embedding_dimension()
    if dim is not None and dim > width:
        raise InputError(f"dim={dim}: the vectors of this model are {width} wide; legal: 1 to {width}")
    encode = encoder.encode_query if as_query else encoder.encode_document
    for start in range(0, len(texts), TEXTS_PER_CALL):
        some = list(texts[start : start + TEXTS_PER_CALL])
        vectors = np.asarray(encode(some, show_progress_bar=False), np.float32)
        stored = pack(vectors if dim is None else shorten(vectors, dim), precision)
        for text, vector in zip(some, stored, strict=True):
            numbers = _shortest(vector)
            typer.echo(
                f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{", ".join(numbers)}]}}'
                if as_json
                else " ".join(numbers)
            )


def _shortest(vector: "NDArray[np.generic]") -> list[str]:
    """Numbers with as many digits as give the same number again in their precision."""
    return [str(number) for number in vector]
