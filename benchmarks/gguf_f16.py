"""Write a copy of a GGUF file whose matrices are float16, for llama.cpp's turns in the throughput benchmark.

    python benchmarks/gguf_f16.py FILE.gguf COPY.gguf

Everything that the file says of itself is kept but the type of its tensors; vectors are float32, as llama.cpp wants.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize

OWN = ("GGUF.", "general.architecture", "general.file_type")
"""Keys that the writer makes itself, or that are about the types of the tensors."""


def copy(source: Path, target: Path) -> None:
    """Copy a file with its matrices in float16."""
    held = GGUFReader(source)
    written = GGUFWriter(target, str(held.fields["general.architecture"].contents()))
    for name, field in held.fields.items():
        if not name.startswith(OWN):
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            written.add_key_value(name, field.contents(), field.types[0], inner)
    written.add_file_type(LlamaFileType.MOSTLY_F16)
    for tensor in held.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        written.add_tensor(tensor.name, numbers.astype(np.float16 if numbers.ndim > 1 else np.float32))
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    copy(args.source, args.target)


if __name__ == "__main__":
    main()
