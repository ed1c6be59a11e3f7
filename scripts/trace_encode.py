"""Print the modules that one ``encode`` passes through, in the order in which it first enters each.

    python scripts/trace_encode.py [--model bundled] [--method aligned_wva] [--texts 40]

The model is loaded and has encoded before, as in a program at work. Counted is every module of the library whose code
runs on the way of a text: from the call to its vector. What only says how (recipes, what a decoder is made of) and
helpers of every room (``_utils``) are listed apart, for no text passes through them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import valuembed

PACKAGE = Path(valuembed.__file__).parent
ASKED = ("_utils", "backbone", "recipes/recipe.py", "recipes/layers.py")


@dataclass
class Trace:
    """The modules that a call passed through.

    Attributes:
        calls: of functions, by module as a path in the package, in the order of the first.
        functions: distinct ones.
        changes: how often a call led from one module into another.
    """

    calls: Counter[str] = field(default_factory=Counter)
    functions: Counter[tuple[str, str]] = field(default_factory=Counter)
    changes: int = 0

    def way(self) -> list[str]:
        """The modules that a text passes through."""
        return [name for name in self.calls if not name.startswith(ASKED)]

    def asked(self) -> list[str]:
        """The modules that are only asked."""
        return [name for name in self.calls if name.startswith(ASKED)]


def trace(call: Any) -> Trace:
    """Follow a call through the package, in all threads that begin during it.

    Args:
        call: a function without arguments.
    """
    found = Trace()
    lock = threading.Lock()

    def module_of(frame: FrameType | None) -> str | None:
        if frame is None:
            return None
        path = Path(frame.f_code.co_filename)
        return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (name := module_of(frame)) is None:
            return
        with lock:
            caller = module_of(frame.f_back)
            found.changes += caller is not None and caller != name
            found.calls[name] += 1
            found.functions[
                name, frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
            ] += 1

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


def encode_trace(model: str, method: str, texts: int) -> Trace:
    """Trace the second ``encode`` of a model.

    Args:
        model, method: as in ``valuembed.load``.
        texts: how many.
    """
    encoder = valuembed.load(model, method)
    rows = [f"text number {number} of some" for number in range(texts)]
    encoder.encode(rows)
    return trace(lambda: encoder.encode(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--method", default="aligned_wva")
    parser.add_argument("--texts", type=int, default=40)
    args = parser.parse_args()
    found = encode_trace(args.model, args.method, args.texts)
    for number, name in enumerate(found.way(), 1):
        print(f"{number:2}  {name:36} {found.calls[name]:6} calls")
    print(f"\nasked on the way: {', '.join(found.asked())}")
    print(f"{len(found.functions)} functions, {found.changes} calls from one module into another")


if __name__ == "__main__":
    main()
