"""A model in memory, wrapped: the same vectors as a loaded one's, the same weights, and the model as it was."""

import gc
import json
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from image_text import FAMILIES as IMAGE_TEXT, TEXT, VISION
from sentence_transformers import SentenceTransformer
from some_texts import some_texts
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

import valuembed
from valuembed.errors import (
    DeviceError,
    InputError,
    ReadingError,
    RecipeError,
    UnknownTokenError,
    UnsupportedModelError,
    VocabularyWarning,
)
from valuembed.testing import tiny_causal_lm, tiny_checkpoint, tiny_tokenizer

TEXTS = some_texts(6)
# Windows and norms after attention, experts, compressed values, states, sinks, fused projections, frequencies that
# follow the length, no head's worth of a decoder's name.
# What peft says of transformers' names, in calls of both that are none of this library's.
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
KINDS = (
    *("llama", "gemma3_text", "mixtral", "deepseek_v3", "qwen3_5_text", "gpt_oss", "phi3", "gpt_neox", "llama4_text"),
    *("mistral", "falcon_h1", "olmo2"),
)


@pytest.fixture
def words():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_causal_lm("llama")


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def state_of(model):
    """Everything about a model that wrapping could change, as something to compare."""
    modules = [(name, type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
               for name, module in model.named_modules()]  # fmt: skip
    tensors = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return modules, tensors, json.dumps(model.config.to_dict(), default=str), model.config._attn_implementation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["aligned_wva", "va"])
def test_vectors_are_those_of_a_loaded_model(kind, method, tmp_path):
    folder = tiny_checkpoint(tmp_path, kind)
    model, words = loaded(folder)
    before = state_of(model)
    with valuembed.wrap(model, words, method) as encoder:
        np.testing.assert_allclose(
            encoder.encode(TEXTS), valuembed.load(str(folder), method, dtype="float32").encode(TEXTS), atol=1e-5
        )
        own = {id(parameter) for parameter in model.parameters()}
        assert all(id(parameter) in own for parameter in encoder.parameters())
    assert state_of(model) == before


@pytest.mark.parametrize("method", ["joined", "hidden_mean", "meta_eol"])
def test_every_way_of_reading(method, tmp_path):
    folder = tiny_checkpoint(tmp_path)
    model, words = loaded(folder)
    expected = valuembed.load(str(folder), method, dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(valuembed.wrap(model, words, method).encode(TEXTS), expected, atol=1e-5)


def test_a_centred_recipe_is_read_for_the_model(model, words):
    recipe = {"signal": "value", "weights": "mean", "centring": "general"}
    mean = valuembed.wrap(model, words, recipe).reader.plan.mean
    assert mean.shape == (16,)


def test_only_the_layers_that_are_read_are_there(model, words):
    encoder = valuembed.wrap(model, words, "va", layers=[0, 1])
    assert len(encoder.reader.model.layers) == 2
    assert encoder.reader.model.config.num_hidden_layers == 2
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


def generate(model):
    ids = torch.arange(5, 13)[None]
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                          output_scores=True, return_dict_in_generate=True)  # fmt: skip


def same(one, other):
    return torch.equal(one.sequences, other.sequences) and all(map(torch.equal, one.scores, other.scores))


def test_generations_are_the_same_to_the_bit(model, words):
    before = generate(model)
    encoder = valuembed.wrap(model, words)
    between = generate(model)
    encoder.encode(TEXTS)
    after = generate(model)
    encoder.close()
    assert all(same(before, later) for later in (between, after, generate(model)))


def test_threads_generate_while_texts_are_embedded(model, words):
    encoder = valuembed.wrap(model, words)
    generated, vectors = generate(model), encoder.encode(TEXTS)
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(same(generate(model), generated) for _ in range(8))),
        threading.Thread(target=lambda: found.extend(np.array_equal(encoder.encode(TEXTS), vectors) for _ in range(8))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 16


def test_a_model_in_training_stays_in_training(words):
    model = tiny_causal_lm("llama", attention_dropout=0.5)
    expected = valuembed.wrap(model, words).encode(TEXTS)
    model.train()
    encoder = valuembed.wrap(model, words)
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    assert all(module.training for module in model.modules())
    model.eval()
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)


def test_a_failed_call_leaves_the_model_as_it_was(model, words):
    words.add_tokens(["<new>"])
    before = state_of(model)
    model.resize_token_embeddings(words.vocab_size)
    state = state_of(model)
    with pytest.warns(VocabularyWarning, match="beyond the"):
        encoder = valuembed.wrap(model, words, "va")
    with pytest.raises(UnknownTokenError, match="for which the model has no embedding"):
        encoder.encode(["a <new> word"])
    assert state_of(model) == state != before


def test_hooks_on_the_model_do_not_run(model, words):
    seen = []
    for module in model.modules():
        module.register_forward_hook(lambda *given: seen.append(given))
    valuembed.wrap(model, words).encode(TEXTS)
    assert not seen


def test_frequencies_that_follow_the_length_are_the_encoders_own(words):
    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = tiny_causal_lm("llama", max_position_embeddings=16, rope_parameters=scaled)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    encoder = valuembed.wrap(model, words, "va", max_tokens=200)
    short = encoder.encode(["a cat"])
    encoder.encode(["a cat sleeps on the mat " * 6])
    np.testing.assert_array_equal(encoder.encode(["a cat"]), short)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    "compiled",
    [
        lambda model: torch.compile(model, backend="eager"),
        lambda model: setattr(model, "forward", torch.compile(model.forward, backend="eager")) or model,
        lambda model: setattr(model.model, "forward", torch.compile(model.model.forward, backend="eager")) or model,
        lambda model: model.compile(backend="eager") or model,
        lambda model: [layer.compile(backend="eager") for layer in model.model.layers] and model,
        lambda model: torch.nn.DataParallel(model),
    ],
    ids=["whole", "forward", "decoder", "in place", "layers", "parallel"],
)
def test_compiled_models_and_parallel_ones(compiled, model, words):
    expected = valuembed.wrap(model, words).encode(TEXTS)
    np.testing.assert_array_equal(valuembed.wrap(compiled(model), words).encode(TEXTS), expected)


def test_a_pipeline_brings_model_and_tokenizer(model, words):
    encoder = valuembed.wrap(pipeline("text-generation", model=model, tokenizer=words))
    np.testing.assert_array_equal(encoder.encode(TEXTS), valuembed.wrap(model, words).encode(TEXTS))


def test_a_decoder_without_its_head(model, words):
    expected = valuembed.wrap(model, words).encode(TEXTS)
    np.testing.assert_array_equal(valuembed.wrap(model.model, words).encode(TEXTS), expected)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_the_text_decoder_of_an_image_text_model(family, words):
    text, vision, whole = IMAGE_TEXT[family]
    config = AutoConfig.for_model(
        family, text_config={**TEXT, "vocab_size": len(words), **text}, vision_config={**VISION, **vision}, **whole
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    vectors = valuembed.wrap(model, words, "va").encode(TEXTS)
    np.testing.assert_allclose(vectors, valuembed.wrap(model.get_decoder(), words, "va").encode(TEXTS), atol=1e-6)


def test_weights_spread_by_a_device_map(model, words):
    accelerate = pytest.importorskip("accelerate")
    expected, before = valuembed.wrap(model, words).encode(TEXTS), generate(model)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    np.testing.assert_array_equal(valuembed.wrap(model, words).encode(TEXTS), expected)
    assert same(generate(model), before)


def test_weights_that_are_moved_in_for_each_pass_are_refused(model, words):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, "cpu")
    with pytest.raises(UnsupportedModelError, match="device map keeps weights elsewhere and moves them in for each"):
        valuembed.wrap(model, words)


@pytest.fixture
def adapted(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(model, lora(4, "q_proj", "v_proj", "o_proj"))


def lora(rank, *targets):
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules=list(targets), init_lora_weights=False)


@PEFT
def test_adapters_count_as_they_are_put_on_switched_and_taken_off(model, words):
    peft = pytest.importorskip("peft")
    encoder = valuembed.wrap(model, words)
    plain = encoder.encode(TEXTS)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, lora(4, "q_proj", "v_proj", "o_proj"))
    first = encoder.encode(TEXTS)
    assert np.abs(first - plain).max() > 0.01
    with adapted.disable_adapter():
        np.testing.assert_array_equal(encoder.encode(TEXTS), plain)
    adapted.add_adapter("other", lora(2, "v_proj"))
    adapted.set_adapter("other")
    assert np.abs(encoder.encode(TEXTS) - first).max() > 0.01
    adapted.set_adapter("default")
    np.testing.assert_array_equal(encoder.encode(TEXTS), first)
    adapted.merge_and_unload()
    np.testing.assert_allclose(encoder.encode(TEXTS), first, atol=1e-5)


@PEFT
def test_adapters_that_are_taken_off_take_no_memory(adapted, words):
    encoder = valuembed.wrap(adapted, words)
    encoder.encode(TEXTS)
    there = weakref.ref(adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    adapted.unload()
    encoder.encode(TEXTS)
    del adapted
    gc.collect()
    assert there() is None


@PEFT
def test_a_model_with_an_adapter_is_saved_with_it(adapted, words, tmp_path):
    encoder = valuembed.wrap(adapted, words)
    vectors, told = encoder.encode(TEXTS), adapted.peft_config["default"].to_dict()
    adapted.add_adapter("other", lora(2, "v_proj"))
    adapted.delete_adapter("other")
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert adapted.peft_config["default"].to_dict() == told
    np.testing.assert_allclose(valuembed.load(str(tmp_path / "saved")).encode(TEXTS), vectors, atol=1e-6)


@PEFT
def test_learned_prompts_are_refused(model, words):
    peft = pytest.importorskip("peft")
    prompted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match=r"puts learned tokens in front of every text \(PROMPT_TUNING\)"):
        valuembed.wrap(prompted, words)


def test_what_saving_quantized_weights_asks_for_is_on_the_copy(model, words):
    model.hf_quantizer, model.is_quantized = object(), True
    copy = valuembed.wrap(model, words).reader.model
    assert copy.hf_quantizer is model.hf_quantizer
    assert copy.is_quantized


def test_weights_that_are_replaced_are_followed(model, words):
    encoder = valuembed.wrap(model, words)
    other = tiny_causal_lm("llama", seed=1)
    model.load_state_dict(other.state_dict(), assign=True)
    np.testing.assert_array_equal(encoder.encode(TEXTS), valuembed.wrap(other, words).encode(TEXTS))


def test_a_cast_of_the_model_is_followed(model, words):
    encoder = valuembed.wrap(model, words)
    vectors = encoder.encode(TEXTS)
    model.to(torch.bfloat16)
    assert encoder.reader.model.dtype == torch.bfloat16
    np.testing.assert_allclose(encoder.encode(TEXTS), vectors, atol=0.1)


def test_the_tokenizer_stays_as_it_was(model, words):
    encoder = valuembed.wrap(model, words, template="<|eos|>{text}")
    encoder.encode(TEXTS)
    assert not words.backend_tokenizer.encode_special_tokens
    vocabulary = words.get_vocab()
    assert encoder.tokenizer.get_vocab() == vocabulary
    words.add_tokens(["<new>"])
    assert "<new>" not in encoder.tokenizer.get_vocab()


def test_saved_it_is_a_folder_like_any_other(tmp_path, words):
    tiny_checkpoint(tmp_path / "tiny-llama", "llama")
    model, words = loaded(tmp_path / "tiny-llama")
    encoder = valuembed.wrap(model, words, "va", layers=[1, 2], prompts={"query": "q: "})
    encoder.save_pretrained(str(tmp_path / "saved"))
    record = json.loads((tmp_path / "saved" / "valuembed_config.json").read_text("utf-8"))
    assert (record["origin"]["name"], record["held_layers"]) == ("tiny-llama", 3)
    assert str(tmp_path) not in json.dumps(record)
    vectors = encoder.encode_query(TEXTS)
    np.testing.assert_allclose(valuembed.load(str(tmp_path / "saved")).encode_query(TEXTS), vectors, atol=1e-6)
    plain = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
    np.testing.assert_allclose(plain.encode_query(TEXTS), vectors, atol=1e-6)


def test_closed_it_lets_go_of_the_model(model, words):
    with valuembed.wrap(model, words) as encoder:
        encoder.encode(TEXTS)
    with pytest.raises(ReadingError, match="the encoder around 'LlamaModel' is closed; wrap the model again"):
        encoder.encode(TEXTS)
    assert repr(encoder) == "WrappedEncoder('LlamaModel', closed)"
    encoder.close()


@pytest.mark.parametrize("method", ["va", "joined"])
def test_a_model_that_was_let_go_takes_no_memory(method, words):
    model = tiny_causal_lm("llama")
    there = weakref.ref(model)
    encoder = valuembed.wrap(model, words, method)
    encoder.encode(TEXTS * 3)
    encoder.close()
    del model
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("change", [lambda it: it.half(), lambda it: it.to("meta"), lambda it: it.bfloat16()])
def test_the_encoder_does_not_move_the_model(change, model, words):
    encoder = valuembed.wrap(model, words)
    with pytest.raises(DeviceError, match="is shared with a model that runs elsewhere in this process"):
        change(encoder)
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {(torch.float32, "cpu")}
    encoder.to("cpu").float().eval()


def test_other_processes_and_copies_are_refused(model, words):
    encoder = valuembed.wrap(model, words)
    for refused in (lambda: encoder.start_multi_process_pool(["cpu", "cpu"]), lambda: pickle.dumps(encoder)):
        with pytest.raises(DeviceError, match="is in the memory of this process, and others would need a copy"):
            refused()


def replaced_by_class(model):
    class Attention(torch.nn.Module):
        def forward(self, hidden_states, **kwargs):
            return hidden_states, None

    model.model.layers[3].self_attn = Attention()


def replaced_by_function(model):
    attention = model.model.layers[3].self_attn
    before = attention.forward
    attention.forward = lambda *args, **kwargs: before(*args, **kwargs)


def replaced_by_kernel(model):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("someones", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.config._attn_implementation_internal = "someones"


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (replaced_by_class, "LlamaModel: its attention was replaced after it was built"),
        (replaced_by_function, "LlamaAttention: its forward was replaced by .*, which runs that module and no copy"),
        (replaced_by_kernel, "attn_implementation='someones' cannot be read; legal: "),
    ],
)
def test_attention_that_was_replaced(replace, message, model, words):
    replace(model)
    with pytest.raises(UnsupportedModelError, match=message):
        valuembed.wrap(model, words)


def tiny_encoder():
    return BertModel(BertConfig(vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                intermediate_size=16))  # fmt: skip


def tiny_encoder_decoder():
    return T5ForConditionalGeneration(T5Config(vocab_size=512, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_encoder, "so it is an encoder and no decoder"),
        (tiny_encoder_decoder, "T5ForConditionalGeneration is an encoder-decoder; a decoder is needed"),
        (lambda: "org/model", "str is no model of transformers: give a PreTrainedModel"),
        (lambda: torch.nn.Linear(2, 2), "Linear is no model of transformers"),
    ],
)
def test_models_that_are_none(make, message, words):
    with pytest.raises(UnsupportedModelError, match=message):
        valuembed.wrap(make(), words)


def test_tokenizers_that_are_none_or_another_models(model, words):
    with pytest.raises(InputError, match="no tokenizer is given: give the model's own"):
        valuembed.wrap(model)
    with pytest.raises(InputError, match="int is no tokenizer"):
        valuembed.wrap(model, 3)
    with pytest.raises(UnsupportedModelError, match="ByT5Tokenizer reports no character offsets"):
        valuembed.wrap(model, ByT5Tokenizer())
    model.resize_token_embeddings(100)
    with pytest.raises(InputError, match=r"has 480 tokens and LlamaModel embeddings for 100: it is another model's"):
        valuembed.wrap(model, words)


def test_an_embedding_model_is_refused(model, words):
    with pytest.raises(InputError, match="WrappedEncoder is an embedding model already"):
        valuembed.wrap(valuembed.wrap(model, words), words)


def test_the_wrapped_model_is_watched_by_the_encoders_recipe(model, words):
    encoder = valuembed.wrap(model, words, "aligned_va", layers=[1, 2])
    ids = torch.arange(5, 13)[None]
    with encoder.watching() as seen:
        generated = generate(model)
    assert same(generated, generate(model))
    cache = model(ids, use_cache=True).past_key_values
    expected = valuembed.from_cache(cache, model, "aligned_va", [1, 2])
    np.testing.assert_allclose(seen.prompt, expected, atol=1e-5)
    encoder.close()
    with pytest.raises(ReadingError, match="is closed; wrap the model again"):
        encoder.watching()


def test_a_purpose_in_place_of_a_method(model, words):
    vectors = valuembed.wrap(model, words, purpose="clustering").encode(TEXTS)
    np.testing.assert_array_equal(vectors, valuembed.wrap(model, words, "aligned_va").encode(TEXTS))
    with pytest.raises(RecipeError, match="purpose='search' stands for a method, and one is given too"):
        valuembed.wrap(model, words, "va", purpose="search")
