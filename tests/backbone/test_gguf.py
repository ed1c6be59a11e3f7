"""GGUF files give the vectors of the same decoder in safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import ARCHITECTURES, CODES, SCALES, WIDE, random_blocks, tiny_gguf, write_gguf
from saved_models import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import valuembed
from valuembed.backbone import content_digest, decoder_facts, kept_facts
from valuembed.backbone.checkpoints import GgufTensor, locate, read_config, read_head
from valuembed.backbone.checkpoints.gguf_types import TYPES
from valuembed.backbone.dequantizing import PIECE, read_tensor
from valuembed.evaluation import evaluate
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = ["The cat sat on the mat, and later it slept near the warm stove.", "Grüße aus 東京", "1"]


def vectors(model, method="aligned_wva", **options):
    return valuembed.load(model, method, dtype="float32", device="cpu", **options).encode(TEXTS)


@pytest.mark.parametrize("method", ["aligned_wva", "prompt_eol"])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_gives_the_vectors_of_the_folder_that_it_was_made_from(tmp_path, family, method):
    file, plain = tiny_gguf(tmp_path, family)
    assert_close(vectors(file, method), vectors(plain, method))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_every_weight_is_equal_to_the_bit(tmp_path, family):
    file, plain = tiny_gguf(tmp_path, family, "Q8_0")
    ours, theirs = (valuembed.load(model, "prompt_eol", dtype="float32").reader.model for model in (file, plain))
    held = theirs.state_dict()
    assert ours.state_dict().keys() == held.keys()
    assert [name for name, weight in ours.state_dict().items() if not weight.equal(held[name])] == []


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *SCALES])
def test_every_type_gives_the_vectors_of_the_numbers_that_it_stands_for(tmp_path, kind):
    file, plain = tiny_gguf(tmp_path, "qwen2", kind, **WIDE)
    assert_close(vectors(file, layers=[1]), vectors(plain, layers=[1]))


@pytest.mark.parametrize("name", [kind.name for kind in TYPES.values() if not kind.is_plain])
def test_numbers_are_unpacked_to_the_bit_as_the_package_does(tmp_path, name):
    """Also where they are more than one piece."""
    kind = TYPES[CODES[name]]
    blocks = PIECE // kind.block + 8
    packed = (
        random_blocks(name, blocks)
        if name in SCALES
        # A byte below 60 is no part of an infinity, nor of what is no number, as a scale.
        else np.random.default_rng(1).integers(0, 60, size=(blocks, kind.size), dtype=np.uint8)
    )
    packed.tofile(tmp_path / "packed")
    shape = (8, blocks * kind.block // 8)
    place = GgufTensor(shape, CODES[name], str(tmp_path / "packed"), 0, packed.size)
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType(CODES[name])).reshape(shape)
    assert np.isfinite(expected).all()
    assert np.array_equal(read_tensor(place, torch.float32, "x").numpy(), expected)
    assert read_tensor(place, torch.bfloat16, "x").equal(torch.from_numpy(expected).bfloat16())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_configuration_is_that_of_the_folder(tmp_path, family):
    file, plain = tiny_gguf(tmp_path, family)
    ours, theirs = (read_config(locate(model)).to_dict() for model in (file, plain))
    of_files = {"architectures", "_name_or_path", "transformers_version", "initializer_range", "max_window_layers"}
    other = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} - of_files
    # Files in single precision, words for what is the default, and tokens where families have some of their own.
    assert other <= {"rms_norm_eps", "head_dim", "bos_token_id", "rope_parameters", "_sliding_window_pattern"}
    assert ours["rms_norm_eps"] == pytest.approx(theirs["rms_norm_eps"])
    for given in (ours, theirs):
        given["rope_parameters"].pop("partial_rotary_factor", None)
    assert ours["rope_parameters"] == theirs["rope_parameters"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_is_the_files_own_or_the_embeddings(tmp_path, tied):
    file, plain = tiny_gguf(tmp_path, "llama", tie_word_embeddings=tied)
    found = locate(file)
    config = read_config(found)
    assert config.tie_word_embeddings is tied
    stock = AutoModelForCausalLM.from_pretrained(plain)
    assert read_head(found, config).equal(stock.lm_head.weight.detach())


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_stretched_positions_are_those_of_the_folder(tmp_path, kind):
    """Llama 3 as the file has it: divisors of frequencies, of which those that turn slowly are 8 and the rest less."""
    rope = {"rope_theta": 500_000.0, **ROPES[kind]}
    settings = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": rope["factor"]}
    settings["llama.rope.scaling.original_context_length"] = 64 if kind == "yarn" else None
    tensors = {}
    if kind == "llama3":
        settings = {}
        # Of 8 numbers a head has 4 frequencies, 500000^(-i/4): 1, 0.0376, 0.00141, 5.3e-5; in 8192 positions they turn
        # 1304, 49, 1.84 and 0.069 times. Above 4 turns nothing changes, below 1 the divisor is 8, and between, at a
        # share s = (1.84 - 1) / 3 = 0.2813, it is 1 / ((1 - s) / 8 + s).
        turns = 8192 * 500_000.0 ** (-2 / 4) / (2 * np.pi)
        share = (turns - 1) / 3
        tensors = {"rope_freqs.weight": np.array([1, 1, 1 / ((1 - share) / 8 + share), 8], dtype=np.float32)}
    file, plain = tiny_gguf(tmp_path, "llama", rope_parameters=rope, settings=settings, tensors=tensors)
    assert read_config(locate(file)).rope_parameters["rope_type"] == kind
    assert_close(vectors(file), vectors(plain))


def test_phi_3_stretches_by_the_factors_in_its_file(tmp_path):
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 64, **factors}
    tensors = {
        f"rope_factors_{name.removesuffix('_factor')}.weight": np.array(value, dtype=np.float32)
        for name, value in factors.items()
    }
    settings = {"phi3.rope.scaling.original_context_length": 64}
    given = {"original_max_position_embeddings": 64, "rope_parameters": rope}
    file, plain = tiny_gguf(tmp_path, "phi3", settings=settings, tensors=tensors, **given)
    assert_close(vectors(file), vectors(plain))


def test_a_split_file_is_one_model_whichever_part_is_named(tmp_path):
    _, plain = tiny_gguf(tmp_path, "llama", split=12)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 2
    for part in (parts[0], parts[-1]):
        assert_close(vectors(part), vectors(plain))
    assert locate(parts[1]).gguf == parts[0].name


def test_a_file_without_an_ending_is_known_by_its_first_bytes(tmp_path):
    file, plain = tiny_gguf(tmp_path)
    blob = file.rename(tmp_path / "sha256-0123abcd")
    assert_close(vectors(blob), vectors(plain))


def test_a_folder_with_one_file_and_nothing_else_is_that_model(tmp_path):
    file, plain = tiny_gguf(tmp_path)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    file.rename(folder / "tiny-Q8_0.gguf")
    (folder / "mmproj-F16.gguf").write_bytes(b"GGUF")  # the image encoder that lies beside its decoder
    assert_close(vectors(folder), vectors(plain))
    assert valuembed.load(folder, layers=[1]).reader.origin.name == "downloaded"


def test_what_lies_beside_a_file_is_no_part_of_it(tmp_path):
    file, plain = tiny_gguf(tmp_path)
    for name in ("config.json", "tokenizer.json", "adapter_config.json", "valuembed_config.json", "modules.json"):
        (tmp_path / name).write_text("{")
    assert_close(vectors(file), vectors(plain))


def test_a_hub_id_with_a_file_takes_it_from_the_repository(tmp_path, monkeypatch):
    file, plain = tiny_gguf(tmp_path)
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--someone--tiny-GGUF" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(file, snapshot / "tiny-Q8_0.gguf")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    name = "someone/tiny-GGUF:tiny-Q8_0.gguf"
    options = {"cache_folder": str(tmp_path / "hub"), "local_files_only": True}
    assert_close(vectors(name, **options), vectors(plain))
    origin = valuembed.load(name, layers=[1], **options).reader.origin
    assert (origin.name, origin.revision, origin.fetchable) == (name, commit, True)


def test_only_the_needed_tensors_are_read(tmp_path):
    """What lies behind them may be anything."""
    file, plain = tiny_gguf(tmp_path)
    whole = gguf.GGUFReader(file)
    late = [tensor for tensor in whole.tensors if tensor.name.startswith("blk.3.") or tensor.name == "output.weight"]
    places = [(int(tensor.data_offset), int(tensor.n_bytes)) for tensor in late]
    assert len(places) > 5
    del whole, late
    with open(file, "r+b") as opened:
        for offset, size in places:
            opened.seek(offset)
            opened.write(b"\xff" * size)
    assert_close(vectors(file, layers=[2]), vectors(plain, layers=[2]))


def test_the_precision_is_the_files_and_that_which_is_asked_for(tmp_path):
    for kind, named in (("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")):
        file, _ = tiny_gguf(tmp_path / kind, kind=kind)
        assert read_config(locate(file)).dtype == getattr(torch, named)
        assert valuembed.load(file, layers=[1], dtype="bfloat16").reader.model.dtype == torch.bfloat16


def test_a_saved_folder_is_a_normal_one_that_names_the_file(tmp_path):
    file, _ = tiny_gguf(tmp_path, "llama", "Q8_0", tokenizer="chat")
    model = valuembed.load(file, layers=[1], dtype="float32")
    model.save_pretrained(str(tmp_path / "saved"))
    again = valuembed.load(tmp_path / "saved")
    assert_close(again.encode(TEXTS), model.encode(TEXTS))
    recorded = json.loads((tmp_path / "saved" / "valuembed_config.json").read_text())
    assert recorded["origin"]["name"] == "model.gguf"
    assert recorded["origin"]["fetchable"] is False
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    assert again.tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template


def test_info_is_that_of_the_folder_and_says_how_numbers_are_packed(tmp_path):
    file, plain = tiny_gguf(tmp_path, kind="Q8_0")
    ours, theirs = (valuembed.info(model, dtype="float32").to_dict() for model in (file, plain))
    assert ours.pop("quantization") == "GGUF (Q8_0), turned back into plain numbers at load"
    assert theirs.pop("quantization") is None
    for told in (ours, theirs):
        del told["name"], told["source"]
    assert ours == theirs
    other, _ = tiny_gguf(tmp_path / "plain numbers", kind="F16")
    assert valuembed.info(other).quantization is None


def test_facts_are_kept_by_what_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path / "cache"))
    file, _ = tiny_gguf(tmp_path)
    assert kept_facts(locate(file)) is None
    facts = decoder_facts(locate(file))
    assert kept_facts(locate(shutil.copy(file, tmp_path / "same.gguf"))).to_dict() == facts.to_dict()
    other, _ = tiny_gguf(tmp_path / "other", num_hidden_layers=3)
    assert kept_facts(locate(other)) is None


def test_a_digest_is_of_the_content_and_not_of_the_name(tmp_path):
    file, _ = tiny_gguf(tmp_path)
    (tmp_path / "more.json").write_text("{}")
    same = Path(shutil.copy(file, tmp_path / "same.gguf"))
    other, _ = tiny_gguf(tmp_path / "other", seed=1)
    assert content_digest(locate(file)) == content_digest(locate(same)) != content_digest(locate(other))


def test_weights_of_8_bits_are_made_of_a_files(tmp_path, monkeypatch):
    monkeypatch.setattr("valuembed.backbone.quantizing.fast_int8", lambda: True)
    file, _ = tiny_gguf(tmp_path)
    assert valuembed.load(file, layers=[1], dtype="int8", device="cpu").compute_dtype.endswith(" int8")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_stands_on_a_file(tmp_path):
    peft = pytest.importorskip("peft")
    file, plain = tiny_gguf(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    for base in (plain, file):
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(plain), config)
        torch.manual_seed(0)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
        adapted.save_pretrained(tmp_path / f"on {base.name}")
        written = tmp_path / f"on {base.name}" / "adapter_config.json"
        written.write_text(json.dumps({**json.loads(written.read_text()), "base_model_name_or_path": str(base)}))
    assert_close(vectors(tmp_path / f"on {file.name}"), vectors(tmp_path / f"on {plain.name}"))


def test_a_folder_written_twice_is_read_anew(tmp_path):
    file, plain = tiny_gguf(tmp_path)
    first = vectors(file)
    tiny_checkpoint(plain, seed=1)
    write_gguf(file, plain)
    assert not np.allclose(vectors(file), first)


def test_an_evaluation_scores_a_file_as_the_folder(tmp_path):
    pytest.importorskip("mteb")
    file, plain = tiny_gguf(tmp_path)
    rows = [{"sentence1": TEXTS[0], "sentence2": text, "score": at} for at, text in enumerate(TEXTS * 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"tasks": [f"sts:{tmp_path / 'pairs.jsonl'}"], "methods": ["va"], "layers": [1], "dtype": "float32"}
    found = [evaluate(model, output=tmp_path / name, **given) for model, name in ((file, "ours"), (plain, "theirs"))]
    assert [made.failures for made in found] == [(), ()]
    assert found[0].table() == found[1].table()
