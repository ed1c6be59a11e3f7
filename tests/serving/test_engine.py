"""What a server computes is what ``encode`` computes, whatever shares a step with it."""

import numpy as np
import pytest
import torch
from some_texts import some_texts

import valuembed
from valuembed.analysis.calibration_fit import calibrate
from valuembed.errors import InputError, ReadingError, RecipeError, TemplateError
from valuembed.execution import executor
from valuembed.execution.scheduler import STEP_COST_ON_CPU, TOKENS_PER_STEP_ON_CPU
from valuembed.serving.engine import EncoderEngine
from valuembed.serving.jobs import MOST_TEMPLATES, EmbedRequest
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = ["A cat sleeps.", "x", "Ein Satz mit Umlauten: äöü. " * 4, "  ", "\u4e2d\u6587 and more", "A cat sleeps."]
CLOSE = {"rtol": 0, "atol": 2e-5}
ROLES = {"query": "prompt_eol", "document": 'Find: "{prompt}{text}" is', "default": "{text} so"}
QUIET = pytest.mark.filterwarnings(
    "ignore::valuembed.errors.BlankTextWarning", "ignore::valuembed.errors.TruncationWarning"
)


@pytest.fixture(scope="module")
def encoder(folder):
    prompts = {"query": "", "passage": "a text : "}
    return valuembed.load(folder, "wva", layers=[1, 2], template=ROLES, prompts=prompts, max_tokens=120)


@pytest.fixture(scope="module")
def engine(encoder):
    return EncoderEngine(encoder)


def vectors(engine, texts, manner=None):
    """Vectors of texts, computed group by group."""
    prepared = engine.prepare(texts, manner or EmbedRequest())
    found = np.empty((len(texts), engine.width), np.float32)
    for group in {item.group for item in prepared}:
        rows = [row for row, item in enumerate(prepared) if item.group == group]
        found[rows] = engine.run([prepared[row] for row in rows])
    return found


def test_it_knows_the_model(encoder, engine):
    assert (engine.name, engine.width) == (encoder.reader.origin.name, 32)
    assert (engine.step_tokens, engine.step_cost) == (TOKENS_PER_STEP_ON_CPU, STEP_COST_ON_CPU)
    assert EncoderEngine(encoder, 77).step_tokens == 77


@QUIET
@pytest.mark.parametrize("count", [1, 3, 12])
def test_vectors_are_those_of_encode(encoder, engine, count):
    texts = (TEXTS * 2)[:count]
    ways = {
        EmbedRequest(): encoder.encode(texts),
        EmbedRequest("query"): encoder.encode_query(texts),
        EmbedRequest("document"): encoder.encode_document(texts),
        EmbedRequest("document", "other : "): encoder.encode_document(texts, prompt="other : "),
        EmbedRequest(None, "before "): encoder.encode(texts, prompt="before "),
    }
    for manner, expected in ways.items():
        np.testing.assert_allclose(vectors(engine, texts, manner), expected, **CLOSE)


@QUIET
def test_a_default_instruction_is_used_as_encode_uses_it(folder):
    encoder = valuembed.load(folder, "wva", layers=[1], prompts={"plain": "said : ", "query": "asked : "})
    encoder.default_prompt_name = "plain"
    engine = EncoderEngine(encoder)
    np.testing.assert_allclose(vectors(engine, TEXTS), encoder.encode(TEXTS), **CLOSE)
    np.testing.assert_allclose(vectors(engine, TEXTS, EmbedRequest("query")), encoder.encode_query(TEXTS), **CLOSE)
    np.testing.assert_allclose(
        vectors(engine, TEXTS, EmbedRequest("document")), encoder.encode_document(TEXTS), **CLOSE
    )


@QUIET
@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize(
    "template", ["none", "echo", 'The word "{text}" means', ("prompt_eol", "{text} and"), "meta_eol"]
)
def test_a_template_of_a_request_is_as_if_the_model_had_been_loaded_with_it(folder, template, count):
    texts = (TEXTS * 2)[:count]
    options = {"method": "aligned_wva", "layers": [1, 2], "max_tokens": 400}
    spec = list(template) if isinstance(template, tuple) else template
    found = vectors(EncoderEngine(valuembed.load(folder, **options)), texts, EmbedRequest("query", template=template))
    expected = valuembed.load(folder, **options, template=spec).encode(texts)
    np.testing.assert_allclose(found, expected, **CLOSE)


@QUIET
def test_texts_of_other_manners_share_steps(encoder, engine):
    """Whole sequences of any template can; those behind shared beginnings only with their own kind."""
    manners = [EmbedRequest(template="{text} one"), EmbedRequest(template="two {text}"), EmbedRequest(prompt="three ")]
    prepared = [engine.prepare([text], manner)[0] for text, manner in zip(TEXTS, manners, strict=False)]
    assert {item.group for item in prepared} == {(1, True)}
    alone = [vectors(engine, [text], manner)[0] for text, manner in zip(TEXTS, manners, strict=False)]
    np.testing.assert_allclose(engine.run(prepared), alone, **CLOSE)
    groups = {engine.prepare(["x"], EmbedRequest(role))[0].group for role in (None, "query", "document")}
    assert len(groups) == 3
    (eight,) = engine.prepare(["x"], EmbedRequest(template="meta_eol"))
    assert eight.group == (8, True)


def test_own_beginnings_are_computed_once_for_all_requests(folder, monkeypatch):
    template = "Some words in front of {text} so"
    engine = EncoderEngine(valuembed.load(folder, "wva", layers=[1], template=template))
    computed, compute = [], executor.read_prefix

    def noted(model, decoder_spec, ids):
        computed.append(ids)
        return compute(model, decoder_spec, ids)

    monkeypatch.setattr(executor, "read_prefix", noted)
    whole = vectors(engine, ["one text"], EmbedRequest(template=template))
    assert computed == []
    for _ in range(3):
        np.testing.assert_allclose(vectors(engine, ["one text"]), whole, **CLOSE)
    assert len(computed) == 1


@QUIET
def test_tokens_and_cuts_are_those_that_encode_reports(encoder, engine):
    texts = ["short", "a long text " * 60, "one more"]
    prepared = engine.prepare(texts, EmbedRequest("query"))
    encoder.encode_query(texts)
    assert sum(item.tokens for item in prepared) == encoder.report.tokens
    assert [item.truncated for item in prepared] == [False, True, False]


def test_token_ids_are_the_texts_they_stand_for(encoder, engine):
    tokenizer = encoder.reader.texts.tokenizer
    text = "A cat sleeps."
    with_bos = tuple(tokenizer(text)["input_ids"])
    assert with_bos[0] == tokenizer.bos_token_id
    for ids in (with_bos, with_bos[1:]):
        np.testing.assert_allclose(vectors(engine, [ids, "x"]), encoder.encode([text, "x"]), **CLOSE)


def test_token_ids_that_are_none_of_the_tokenizer(encoder, engine):
    tokenizer = encoder.reader.texts.tokenizer
    size = len(tokenizer)
    assert engine.token_ids == size
    for wrong in (size, 10**30):
        with pytest.raises(
            InputError,
            match=rf"^token id {wrong} is not one of this model's, which are 0 to {size - 1}; ids of another",
        ):
            engine.prepare([(5, wrong)], EmbedRequest())
    with pytest.raises(InputError, match=r"^its token ids are special tokens only, and no text$"):
        engine.prepare([(tokenizer.bos_token_id,)], EmbedRequest())
    nul = tuple(tokenizer("\0", add_special_tokens=False)["input_ids"])
    with pytest.raises(
        InputError, match=r"^its token ids decode to a text that cannot be embedded: it is not text: NUL"
    ):
        engine.prepare([nul], EmbedRequest())


def test_templates_that_cannot_be(engine):
    with pytest.raises(TemplateError, match="template 'nonsense' is unknown; give one of"):
        engine.prepare(["x"], EmbedRequest(template="nonsense"))
    with pytest.raises(TemplateError, match="template 'chat': this model's tokenizer has no chat template"):
        engine.prepare(["x"], EmbedRequest(template="chat"))
    with pytest.raises(TemplateError, match=f"^24 templates for a text; give at most {MOST_TEMPLATES}$"):
        engine.prepare(["x"], EmbedRequest(template=("meta_eol", "meta_eol", "meta_eol")))
    with pytest.raises(TemplateError, match="no room is left for the text"):
        engine.prepare(["x"], EmbedRequest(prompt="word " * 200))


def test_a_template_for_a_joined_method(folder):
    model = valuembed.load(folder, "joined")
    engine = EncoderEngine(model)
    with pytest.raises(TemplateError) as caught:
        engine.prepare(["x"], EmbedRequest(template="none"))
    assert str(caught.value) == "method 'joined' has a template for each of its parts; leave template out"
    np.testing.assert_allclose(vectors(engine, TEXTS[:2]), model.encode(TEXTS[:2]), **CLOSE)


@QUIET
def test_the_chat_template_of_the_model(tmp_path):
    folder = tiny_checkpoint(tmp_path / "chat", tokenizer="chat")
    engine = EncoderEngine(valuembed.load(folder, "wva", layers=[1]))
    expected = valuembed.load(folder, "wva", layers=[1], template="chat:prompt_eol").encode(TEXTS)
    np.testing.assert_allclose(vectors(engine, TEXTS, EmbedRequest(template="chat:prompt_eol")), expected, **CLOSE)


def test_a_calibrated_model_keeps_its_template(folder):
    encoder = calibrate(valuembed.load(folder, "va", layers=[1]), some_texts(40), progress=False)
    engine = EncoderEngine(encoder)
    np.testing.assert_allclose(vectors(engine, TEXTS[:2]), encoder.encode(TEXTS[:2]), **CLOSE)
    np.testing.assert_allclose(
        vectors(engine, TEXTS[:2], EmbedRequest(template="none")), encoder.encode(TEXTS[:2]), **CLOSE
    )
    with pytest.raises(RecipeError, match=r"was calibrated \(whiten\) for va with template"):
        engine.prepare(["x"], EmbedRequest(template="prompt_eol"))


def test_vectors_that_are_cut_or_not_normalised_as_the_model_says(folder):
    encoder = valuembed.load(folder, "va", layers=[1], normalize=False)
    encoder.truncate_dim = 5
    engine = EncoderEngine(encoder)
    assert engine.width == 5
    np.testing.assert_allclose(vectors(engine, TEXTS[:2]), encoder.encode(TEXTS[:2]), **CLOSE)


def test_a_vector_that_is_not_finite_is_an_error(folder):
    encoder = valuembed.load(folder, "va", layers=[1])
    engine = EncoderEngine(encoder)
    prepared = engine.prepare(["x"], EmbedRequest())
    with torch.no_grad():
        encoder.reader.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ReadingError, match="the embedding of 1 text is not finite"):
        engine.run(prepared)
