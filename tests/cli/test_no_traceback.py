"""Whatever is wrong with a checkpoint, a machine, a call or a file: the command line says it in one line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import run

from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

SIMILARITY = ("similarity", "a", "b", "--model", "{model}")
EMBED = ("embed", "{file}", "-o", "{here}/out.parquet")
STS = ("--task", "sts:{file}")


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change a JSON file of a checkpoint."""

    def apply(model: Path) -> None:
        held = json.loads((model / file).read_text())
        change(held)
        (model / file).write_text(json.dumps(held))

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(content) and None


def move(name: str, to: str) -> Callable[[Path], None]:
    return lambda model: (model / name).rename(model / to) and None


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CONFIG = "config.json"

CHECKPOINTS = {
    "variant": (move("model.safetensors", "model.fp16.safetensors"), SIMILARITY),
    "pickles": (move("model.safetensors", "pytorch_model.bin"), SIMILARITY),
    "lfs weights": (write("model.safetensors", POINTER), SIMILARITY),
    "lfs tokenizer": (write("tokenizer.json", POINTER), SIMILARITY),
    "lfs configuration": (write(CONFIG, POINTER), ("info", "{model}")),
    "empty weights": (write("model.safetensors", b""), SIMILARITY),
    "cut weights": (write("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"), SIMILARITY),
    "index without shards": (
        lambda model: (
            (model / "model.safetensors").unlink(),
            write("model.safetensors.index.json", b'{"weight_map": {"embed_tokens.weight": "m-1.safetensors"}}')(model),
        ),
        SIMILARITY,
    ),
    "configuration no JSON": (write(CONFIG, b"{,}"), ("info", "{model}")),
    "configuration an array": (write(CONFIG, b"[]"), ("info", "{model}")),
    "unknown family": (edit(CONFIG, lambda held: held.update(model_type="of_tomorrow")), ("info", "{model}")),
    "unknown dtype": (edit(CONFIG, lambda held: held.update(dtype="float7")), SIMILARITY),
    "gptq": (
        edit(CONFIG, lambda held: held.update(quantization_config={"quant_method": "gptq", "bits": 4})),
        SIMILARITY,
    ),
    "unknown quantization": (
        edit(CONFIG, lambda held: held.update(quantization_config={"quant_method": "of_tomorrow"})),
        SIMILARITY,
    ),
    "width that does not fit": (edit(CONFIG, lambda held: held.update(hidden_size=48)), SIMILARITY),
    "more layers than weights": (
        edit(CONFIG, lambda held: held.update(num_hidden_layers=6, layer_types=None)),
        (*SIMILARITY, "--layers", "5"),
    ),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), SIMILARITY),
    "CUDA": (lambda model: None, (*SIMILARITY, "--device", "cuda:1")),
    "typo of a device": (lambda model: None, (*SIMILARITY, "--device", "cdua")),
    "half an adapter": (write("adapter_config.json", b'{"peft_type": "LORA"}'), SIMILARITY),
}

FILES = {
    "array": ("x.jsonl", b'[{"text": "a"}, {"text": "b"}]', EMBED),
    "indented": ("x.jsonl", b'{\n  "text": "a"\n}\n', EMBED),
    "trailing commas": ("x.jsonl", b'{"text": "a"},\n{"text": "b"},\n', EMBED),
    "other key": ("x.jsonl", b'{"txt": "a"}\n', EMBED),
    "empty": ("x.jsonl", b"", EMBED),
    "UTF-16": ("x.txt", "a text\n".encode("utf-16"), EMBED),
    "latin-1": ("x.txt", "caf\u00e9\n".encode("latin-1"), EMBED),
    "no gzip": ("x.jsonl.gz", b'{"text": "a"}\n', EMBED),
    "cut gzip": ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], EMBED),
    "no Parquet": ("x.parquet", b"PAR1", EMBED),
    "other columns": ("x.csv", b"id;words\n1;a\n", EMBED),
    "open quote": ("x.csv", b'text\n"a\n', EMBED),
    "no such file": ("x.txt", None, EMBED),
    "no vectors": ("x.parquet", b"", ("search", "a", "--in", "{file}")),
    "constant scores": (
        "x.jsonl",
        b"".join(b'{"sentence1": "a%d", "sentence2": "b", "score": 1}\n' % n for n in range(9)),
        ("sweep", "bundled", *STS),
    ),
    "two pairs": (
        "x.jsonl",
        b'{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "a", "sentence2": "c", "score": 2}\n',
        ("evaluate", "bundled", "--methods", "va", "--tasks", "sts:{file}"),
    ),
    "pairs without a score": ("x.jsonl", b'{"sentence1": "a", "sentence2": "b"}\n', ("sweep", "bundled", *STS)),
}

CALLS = {
    "lone surrogate": ("similarity", "a\udcff", "b"),
    "blank text": ("embed", " "),
    "misspelt file": ("embed", "nws.jsonl"),
    "no template": ("similarity", "a", "b", "--template", "{txt}"),
    "unknown method": ("explain", "a", "--method", "vaa"),
    "layer out of range": ("info", "--layers", "99"),
    "no stdin": ("embed", "-"),
    "picture of an unknown kind": ("similarity", "a", "b", "--plot", "x.bmp"),
}


def assert_told_in_one_line(arguments: tuple[str, ...]) -> None:
    """Hold a command to an error that is explained: no traceback, one line, exit code 1."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, result.output
    assert result.stderr.splitlines()[-1] == told[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("whole") / "model")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint(name: str, whole: Path, tmp_path: Path) -> None:
    damage, arguments = CHECKPOINTS[name]
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    damage(model)
    assert_told_in_one_line(tuple(part.format(model=model) for part in arguments))


@pytest.mark.parametrize("name", FILES)
def test_a_file(name: str, tmp_path: Path) -> None:
    file, content, arguments = FILES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    assert_told_in_one_line(tuple(part.format(file=tmp_path / file, here=tmp_path) for part in arguments))
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("name", CALLS)
def test_a_call(name: str) -> None:
    assert_told_in_one_line(CALLS[name])
