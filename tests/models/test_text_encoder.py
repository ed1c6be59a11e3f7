"""Vectors without sentence-transformers are those of a loaded model, with the same roles, checks and reports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_models import assert_close

import valuembed
from valuembed.errors import BlankTextWarning, InputError, NotFiniteError, TruncationWarning
from valuembed.models.text_encoder import TextEncoder, load_text_encoder
from valuembed.testing import tiny_checkpoint

TEXTS = ["A doctor sees a patient.", "They scored a late goal, and the whole town sang until the morning.", "x"]


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    loaded = load_text_encoder(folder)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("method", ["va", "aligned_wva", "echo", "meta_eol"])
def test_vectors_are_those_of_a_loaded_model(method, folder):
    template = {"query": "prompt_eol", "document": "none"} if method == "aligned_wva" else "auto"
    light, whole = (
        load_text_encoder(folder, method, template=template),
        valuembed.load(folder, method, template=template),
    )
    for name in ("encode", "encode_query", "encode_document"):
        assert_close(getattr(light, name)(TEXTS), getattr(whole, name)(TEXTS))
    assert light.recipe == whole.recipe
    assert light.get_embedding_dimension() == whole.get_embedding_dimension()
    assert (light.compute_dtype, light.max_seq_length) == (whole.compute_dtype, whole.max_seq_length)
    assert light.reader.loaded_from == whole.reader.loaded_from


def test_one_text_is_one_vector_and_none_are_none(encoder):
    one, none = encoder.encode(TEXTS[0]), encoder.encode([])
    assert one.dtype == none.dtype == np.float32
    assert_close(one[None], encoder.encode(TEXTS[:1]))
    assert none.shape == (0, encoder.get_embedding_dimension())


def test_instructions_are_those_of_a_saved_sentence_transformer(tmp_path):
    plain = tiny_checkpoint(tmp_path / "model")
    (plain / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    for default in ("null", '"topic"'):
        (plain / "config_sentence_transformers.json").write_text(
            f'{{"prompts": {{"query": "Find: ", "topic": "Topic: "}}, "default_prompt_name": {default}}}'
        )
        light, whole = load_text_encoder(plain), valuembed.load(plain)
        for name in ("encode", "encode_query", "encode_document"):
            assert_close(getattr(light, name)(TEXTS), getattr(whole, name)(TEXTS))


def test_a_saved_folder_is_left_to_sentence_transformers(folder, tmp_path):
    valuembed.load(folder).save_pretrained(str(tmp_path / "saved"))
    assert load_text_encoder(tmp_path / "saved") is None


def test_what_is_no_text_is_named(encoder):
    with pytest.raises(InputError, match=r"^1 of 2 texts cannot be embedded: row 1 is not a string but int"):
        encoder.encode(["a", 5])


def test_what_is_not_finite_is_named(folder):
    broken = load_text_encoder(folder)
    with torch.no_grad():
        next(broken.reader.model.parameters()).fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=r"^the embedding of 1 text is not finite"):
        broken.encode("a")


def test_texts_that_are_cut_or_blank_are_told(folder):
    short = load_text_encoder(folder, "va", max_tokens=3)
    with pytest.warns(TruncationWarning, match=r"^2 of 3 texts were cut to fit max_tokens=3"):
        short.encode(TEXTS)
    assert short.report.truncated == 2
    with pytest.warns(BlankTextWarning, match=r"^1 of 1 text is blank"):
        short.encode(" ")


@pytest.mark.slow
@pytest.mark.process
def test_sentence_transformers_is_not_imported(folder):
    script = (
        "import sys\n"
        "from valuembed.models.text_encoder import load_text_encoder\n"
        "print(load_text_encoder(sys.argv[1]).encode('A text.').shape)\n"
        "print(sorted({'sentence_transformers', 'sklearn', 'pandas', 'datasets', 'peft'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["(32,)", "[]"]
