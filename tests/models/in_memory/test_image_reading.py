"""Images read with image-text models in memory, held against the stock model's own values at the image's tokens."""

import copy

import numpy as np
import pytest
import torch
from image_text import FAMILIES, TEXT, VISION
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessorPil, LlavaProcessor

import valuembed
from valuembed.errors import InputError, ReadingError, RecipeError, UnsupportedModelError
from valuembed.testing import tiny_causal_lm, tiny_tokenizer

IMAGE, PIECES = 500, 4
WIDTH = 16  # g * d of every tiny family
LAYERS = [1, 3]


def image_model(family, **settings):
    text, vision, whole = FAMILIES[family]
    config = AutoConfig.for_model(
        family, text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **{**whole, **settings}
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():
        # Some families begin with projections of zeros, through which no image is seen.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def processed(family, seed=0):
    """What a processor makes of a picture: a few words, the image's tokens, a few words."""
    ids = torch.tensor([[7, 8, *[IMAGE] * PIECES, 9, 10]])
    generator = torch.Generator().manual_seed(seed)
    if family == "qwen3_vl":
        # 4 x 4 patches of 14 x 14 pixels, two of them along time, merged 2 x 2.
        pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=generator)
        kinds = (ids == IMAGE).int()
        return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]]),
                "mm_token_type_ids": kinds}  # fmt: skip
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28, generator=generator),
            "token_type_ids": (ids == IMAGE).int()}  # fmt: skip


def model_of(family):
    settings = {"image_token_id": IMAGE} if family == "qwen3_vl" else {"image_token_index": IMAGE}
    if family == "gemma3":
        settings["image_token_id"] = IMAGE
    return image_model(family, **settings)


def stock_values(model, inputs):
    """Values of each layer ``[t, g*d]``, as they leave the modules that make them."""
    found = {}
    layers = model.get_decoder().layers
    hooks = [
        layers[at].self_attn.v_proj.register_forward_hook(
            lambda module, given, made, at=at: found.update({at: made[0]})
        )
        for at in LAYERS
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_a_mean_covers_the_tokens_of_the_image(family):
    model = model_of(family)
    inputs = processed(family)
    values = stock_values(model, inputs)
    of_image = inputs["input_ids"][0] == IMAGE
    expected = sum(values[at][of_image].mean(dim=0) for at in LAYERS) / len(LAYERS)
    encoder = valuembed.wrap(model, tiny_tokenizer(), "va", layers=LAYERS, normalize=False)
    np.testing.assert_allclose(encoder.encode_images([inputs])[0], expected.numpy(), atol=1e-5)


def test_another_image_is_another_vector_and_text_stays_text():
    encoder = valuembed.wrap(model_of("gemma3"), tiny_tokenizer(), "va", layers=LAYERS)
    before = encoder.encode(["a cat"])
    one, other = encoder.encode_images([processed("gemma3"), processed("gemma3", seed=1)])
    assert one @ other < 0.999
    np.testing.assert_array_equal(encoder.encode(["a cat"]), before)


@pytest.fixture(scope="module")
def llava():
    words = tiny_tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    number = words.convert_tokens_to_ids("<image>")
    resize = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**resize), words, patch_size=14, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    return image_model("llava", image_token_index=number, image_token_id=number), processor


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8))


ALONE, IN_A_WORD = "<image>", '<image>\nThis image means in one word:"'


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("va", ALONE),
        ("aligned_va", ALONE),
        ("hidden_mean", ALONE),
        ("aligned_wva", IN_A_WORD),
        ("prompt_eol", IN_A_WORD),
    ],
)
def test_pictures_go_through_the_models_processor(method, text, llava):
    model, processor = llava
    encoder = valuembed.wrap(model, processor, method)
    vectors = encoder.encode_images([picture(), picture(1)])
    assert vectors.shape == (2, encoder.get_embedding_dimension())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(picture(1)), vectors[1], atol=1e-6)
    by_hand = processor(images=[picture()], text=[text], return_tensors="pt")
    np.testing.assert_allclose(encoder.encode_images([by_hand])[0], vectors[0], atol=1e-6)
    assert torch.equal(encoder.encode_images(picture(), convert_to_tensor=True), torch.tensor(vectors[0]))


def test_pictures_are_given_in_the_precision_of_the_model(llava):
    model, processor = llava
    expected = valuembed.wrap(model, processor, "va").encode_images(picture())
    halved = copy.deepcopy(model).to(torch.bfloat16)
    np.testing.assert_allclose(valuembed.wrap(halved, processor, "va").encode_images(picture()), expected, atol=0.1)


def test_the_last_token_is_read_behind_a_prompt(llava):
    encoder = valuembed.wrap(*llava, "aligned_wva")
    plain, other = encoder.encode_images(picture()), encoder.encode_images(picture(), "{image} shows")
    assert plain @ other < 0.999


def test_the_model_stays_as_it_was(llava):
    model, processor = llava
    ids = processor(images=[picture()], text=["<image> is"], return_tensors="pt")
    before = model.generate(**ids, max_new_tokens=5, do_sample=False)
    valuembed.wrap(model, processor, "va").encode_images(picture())
    assert torch.equal(model.generate(**ids, max_new_tokens=5, do_sample=False), before)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_what_cannot_be_read(llava):
    model, processor = llava
    encoder = valuembed.wrap(model, processor, "va")
    with pytest.raises(InputError, match=r"template='no slot' has to hold \{image\} once"):
        encoder.encode_images(picture(), "no slot")
    with pytest.raises(InputError, match="image 0 cannot be read by LlavaProcessor"):
        encoder.encode_images(["not a picture"])
    with pytest.raises(InputError, match="image 0: one row of token ids that hold the image's"):
        encoder.encode_images([{"input_ids": torch.tensor([[5, 6]])}])
    with pytest.raises(InputError, match="images need the model's processor: give it to wrap"):
        valuembed.wrap(model, processor.tokenizer, "va").encode_images(picture())
    with pytest.raises(RecipeError, match="method 'joined' joins parts that read texts in templates of their own"):
        valuembed.wrap(model, processor, "joined").encode_images(picture())
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM reads text alone"):
        valuembed.wrap(tiny_causal_lm("llama"), tiny_tokenizer(), "va").encode_images(picture())
    encoder.close()
    with pytest.raises(ReadingError, match="is closed; wrap the model again"):
        encoder.encode_images(picture())
