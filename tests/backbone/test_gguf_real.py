"""Files that llama.cpp's users have, beside the folders that transformers makes of them.

They are no part of the repository: ``VALUEMBED_REAL`` names a folder that holds ``smollm2.gguf``, ``smollm2/`` and so
on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from saved_models import assert_close
from some_texts import mixed_texts
from transformers import AutoTokenizer

import valuembed
from valuembed.backbone.checkpoints import locate
from valuembed.tokenization import load_tokenizer

REAL = os.environ.get("VALUEMBED_REAL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="VALUEMBED_REAL names no folder of real decoders"),
]

MODELS = ("smollm2", "gemma3", "qwen2.5")
TEXTS = ["The cat sat on the mat.", "Grüße aus 東京", "A man is playing a guitar on stage tonight."]


def pair(name: str) -> tuple[Path, Path]:
    file, folder = Path(REAL or "") / f"{name}.gguf", Path(REAL or "") / name
    if not (file.is_file() and (folder / "tokenizer.json").is_file()):
        pytest.skip(f"{REAL} holds no {file.name} beside {name}/")
    return file, folder


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_the_folder(name):
    """The folder's numbers are the file's, rounded to bfloat16."""
    file, folder = pair(name)
    ours = valuembed.load(file, layers=[1, 2], dtype="float32", device="cpu")
    with torch.no_grad():
        for weight in ours.reader.model.parameters():
            weight.copy_(weight.bfloat16())
    theirs = valuembed.load(folder, layers=[1, 2], dtype="float32", device="cpu")
    held = theirs.reader.model.state_dict()
    assert [key for key, weight in ours.reader.model.state_dict().items() if not weight.equal(held[key])] == []
    assert_close(ours.encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_folder(name):
    file, folder = pair(name)
    ours, theirs = load_tokenizer(locate(file)), AutoTokenizer.from_pretrained(folder)
    texts = [*mixed_texts(10_000), *(f"{text} {token}" for text in TEXTS for token in theirs.all_special_tokens)]
    assert ours(texts).input_ids == theirs(texts).input_ids
    assert ours.chat_template == theirs.chat_template
