"""How tensors lie in a GGUF file: the types of numbers by the codes that stand for them, and the bytes that they take.

Source: llama.cpp, ``ggml.h`` and ``ggml-common.h``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GgufType:
    """How numbers are packed.

    Attributes:
        name: llama.cpp's.
        block: how many numbers are packed together.
        size: bytes of a block.
        needs_package: whether the package ``gguf`` unpacks it, and not this library.
    """

    name: str
    block: int
    size: int
    needs_package: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether each number lies there by itself."""
        return self.block == 1


TYPES = {
    0: GgufType("F32", 1, 4),
    1: GgufType("F16", 1, 2),
    2: GgufType("Q4_0", 32, 18),
    3: GgufType("Q4_1", 32, 20),
    6: GgufType("Q5_0", 32, 22),
    7: GgufType("Q5_1", 32, 24),
    8: GgufType("Q8_0", 32, 34),
    10: GgufType("Q2_K", 256, 84),
    11: GgufType("Q3_K", 256, 110),
    12: GgufType("Q4_K", 256, 144),
    13: GgufType("Q5_K", 256, 176),
    14: GgufType("Q6_K", 256, 210),
    16: GgufType("IQ2_XXS", 256, 66, True),
    17: GgufType("IQ2_XS", 256, 74, True),
    18: GgufType("IQ3_XXS", 256, 98, True),
    19: GgufType("IQ1_S", 256, 50, True),
    20: GgufType("IQ4_NL", 32, 18, True),
    21: GgufType("IQ3_S", 256, 110, True),
    22: GgufType("IQ2_S", 256, 82, True),
    23: GgufType("IQ4_XS", 256, 136, True),
    28: GgufType("F64", 1, 8),
    29: GgufType("IQ1_M", 256, 56, True),
    30: GgufType("BF16", 1, 2),
    34: GgufType("TQ1_0", 256, 54, True),
    35: GgufType("TQ2_0", 256, 66, True),
}
"""Types that are read, by their codes."""

UNREAD = {
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 39: "MXFP4",
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
}  # fmt: skip
"""Names of other types: whole numbers, what is made while llama.cpp runs, what it gave up, and what came later."""


def is_gguf_type(code: int) -> bool:
    """Whether numbers of a type are read."""
    return code in TYPES


def gguf_type_name(code: int) -> str:
    """The name of a type, or its code where it has none here."""
    return TYPES[code].name if code in TYPES else UNREAD.get(code, f"number {code}")
