"""A watch on generation: the vectors of what was fed, and a model that generates as it does unwatched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

import valuembed
from valuembed.errors import InputError, ReadingError, RecipeError, UnsupportedModelError
from valuembed.models.in_memory.cache_vectors import from_cache
from valuembed.models.in_memory.generation_watch import watching
from valuembed.testing import tiny_causal_lm, tiny_decoder

pytestmark = pytest.mark.slow

PROMPTS = torch.tensor([[0, 0, 31, 32, 33], [41, 42, 43, 44, 45]])
"""Padded on the left with token 0."""
MASK = (PROMPTS != 0).long()
TOKENS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny_causal_lm("qwen3")


@pytest.fixture
def plain(qwen: Any) -> Tensor:
    """What comes back where nobody watches, ``[2, 11]``."""
    return qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)


def alone(model: Any, tokens: list[int], start: int, end: int, **options: Any) -> Tensor:
    """The vector of some tokens of a text, which is run by itself."""
    with torch.no_grad():
        filled = model(torch.tensor([tokens]), use_cache=True).past_key_values
    return from_cache(filled, model, span=(start, end), **options)[0]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def hooks(model: Any) -> int:
    return len(model._forward_hooks)


class TestVectors:
    def test_are_those_of_prompts_and_of_what_was_generated(self, qwen: Any, plain: Tensor) -> None:
        with watching(qwen) as seen:
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        rows = plain.tolist()
        close(seen.prompt, torch.stack([alone(qwen, rows[0][2:], 0, 3), alone(qwen, rows[1], 0, 5)]))
        # Six tokens were sampled, and the last one was never fed.
        close(seen.generated, torch.stack([alone(qwen, rows[0][2:], 3, 8), alone(qwen, rows[1], 5, 10)]))
        assert seen.generations[0].prompt_span == (0, 5)
        assert seen.generations[0].generated_spans == [(5, 10), (5, 10)]
        assert torch.equal(seen.generations[0].sequences, plain)

    def test_of_any_tokens_leave_padding_out(self, qwen: Any, plain: Tensor) -> None:
        with watching(qwen, layers=[1, 2], normalize=False) as seen:
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        options = {"layers": [1, 2], "normalize": False}
        rows = plain.tolist()
        both = torch.stack([alone(qwen, rows[0][2:], 0, 5, **options), alone(qwen, rows[1], 0, 7, **options)])
        close(seen.vectors((0, 7)), both)
        close(seen.vectors([(0, 7)], rows=[1]), both[1:])
        close(seen.vectors([(0, 7), (0, 7)], rows=[1, 0]), both.flip(0))

    def test_of_aligned_values(self, qwen: Any, plain: Tensor) -> None:
        with watching(qwen, "aligned_va") as seen:
            qwen.generate(PROMPTS[1:], **TOKENS)
        close(seen.prompt[0], alone(qwen, plain[1].tolist(), 0, 5, method="aligned_va"))

    def test_a_mask_that_generate_infers_counts(self, qwen: Any, plain: Tensor) -> None:
        with watching(qwen) as seen:
            inferred = qwen.generate(PROMPTS, **TOKENS)
        assert torch.equal(inferred, plain)
        close(seen.prompt[0], alone(qwen, plain[0, 2:].tolist(), 0, 3))

    def test_padding_that_ends_a_text_too_is_no_padding(self, qwen: Any) -> None:
        with watching(qwen) as seen:
            found = qwen.generate(PROMPTS, pad_token_id=0, eos_token_id=[0, 2], **TOKENS)
        close(seen.prompt[0], alone(qwen, found[0].tolist(), 0, 5))

    def test_of_several_sequences_for_a_prompt(self, qwen: Any) -> None:
        torch.manual_seed(5)
        with watching(qwen) as seen:
            found = qwen.generate(
                PROMPTS, attention_mask=MASK, do_sample=True, num_return_sequences=2, max_new_tokens=4
            ).tolist()
        assert seen.prompt.shape == seen.generated.shape == (4, 16)
        close(seen.prompt[1], alone(qwen, found[1][2:], 0, 3))
        close(seen.generated[3], alone(qwen, found[3], 5, 8))

    def test_of_prompts_that_are_given_by_name_or_embedded_or_not_at_all(self, qwen: Any, plain: Tensor) -> None:
        embedded = qwen.get_input_embeddings()(PROMPTS[1:]).detach()
        with watching(qwen) as seen:
            qwen.generate(input_ids=PROMPTS[1:], generation_config=GenerationConfig(**TOKENS))
            assert qwen.generate(inputs_embeds=embedded, **TOKENS).shape == (1, 6)
            started = qwen.generate(bos_token_id=7, **TOKENS).tolist()
        for generation in seen.generations[:2]:
            close(generation.prompt[0], alone(qwen, plain[1].tolist(), 0, 5))
            close(generation.generated[0], alone(qwen, plain[1].tolist(), 5, 10))
        assert seen.generations[2].prompt_span == (0, 1)
        close(seen.generated[0], alone(qwen, started[0], 1, 6))

    @pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 2}])
    def test_of_other_caches_and_prefills(self, qwen: Any, plain: Tensor, options: dict[str, Any]) -> None:
        with watching(qwen) as seen:
            found = qwen.generate(PROMPTS[1:], **TOKENS, **options)
        assert torch.equal(found[0], plain[1])
        close(seen.prompt[0], alone(qwen, plain[1].tolist(), 0, 5))
        close(seen.generated[0], alone(qwen, plain[1].tolist(), 5, 10))

    @pytest.mark.parametrize("drafts", ["lookup", "model"])
    def test_of_drafted_tokens_only_those_that_stay_count(self, qwen: Any, drafts: str) -> None:
        prompt = torch.tensor([[31, 32, 33, 31, 32, 33, 31, 32]])
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
        expected = qwen.generate(prompt, **options)
        draft = {
            "lookup": {"prompt_lookup_num_tokens": 3},
            "model": {"assistant_model": tiny_causal_lm("qwen3", seed=1)},
        }
        with watching(qwen) as seen:
            found = qwen.generate(prompt, **draft[drafts], **options)
        assert torch.equal(found, expected)
        close(seen.prompt[0], alone(qwen, found[0].tolist(), 0, 8))
        close(seen.generated[0], alone(qwen, found[0].tolist(), 8, 19))

    def test_a_model_that_drafts_for_itself_is_watched_once(self, qwen: Any) -> None:
        with watching(qwen) as seen:
            found = qwen.generate(PROMPTS[1:], assistant_model=qwen, **TOKENS)
        assert len(seen.generations) == 1
        close(seen.prompt[0], alone(qwen, found[0].tolist(), 0, 5))
        close(seen.generated[0], alone(qwen, found[0].tolist(), 5, 10))


class TestEnds:
    @pytest.fixture
    def ending(self, qwen: Any, plain: Tensor) -> dict[str, Any]:
        """Options by which row 0 ends at its second new token, and row 1 does not."""
        end = int(plain[0, 6])
        assert end not in plain[0, 5:6].tolist() + plain[1, 5:].tolist()
        return {**TOKENS, "eos_token_id": [end, 500], "pad_token_id": 0}

    def test_a_row_counts_up_to_its_end(self, qwen: Any, plain: Tensor, ending: dict[str, Any]) -> None:
        with watching(qwen) as seen:
            found = qwen.generate(PROMPTS, attention_mask=MASK, **ending)
        assert found[0, 7:].tolist() == [0, 0, 0, 0]
        assert seen.generations[0].generated_spans == [(5, 6), (5, 10)]
        close(seen.generated[0], alone(qwen, plain[0, 2:].tolist(), 3, 4))
        close(seen.generated[1], alone(qwen, plain[1].tolist(), 5, 10))

    def test_all_rows_may_end_before_the_most_tokens(self, qwen: Any, plain: Tensor, ending: dict[str, Any]) -> None:
        with watching(qwen) as seen:
            found = qwen.generate(PROMPTS[:1], attention_mask=MASK[:1], **ending)
        assert found.shape == (1, 7)
        close(seen.generated[0], alone(qwen, plain[0, 2:].tolist(), 3, 4))

    def test_a_row_that_another_criterion_stops_counts_up_to_its_padding(self, qwen: Any, plain: Tensor) -> None:
        class FirstRowAfterThree(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                return torch.tensor([input_ids.shape[1] >= 8, False])

        with watching(qwen) as seen:
            qwen.generate(
                PROMPTS, attention_mask=MASK, stopping_criteria=StoppingCriteriaList([FirstRowAfterThree()]), **TOKENS
            )
        assert seen.generations[0].generated_spans == [(5, 8), (5, 10)]
        close(seen.generated[0], alone(qwen, plain[0, 2:].tolist(), 3, 6))

    def test_a_row_that_generated_nothing_is_named_and_the_others_are_read(self, qwen: Any, plain: Tensor) -> None:
        end = int(plain[1, 5])
        assert end not in plain[0, 5:].tolist()
        with watching(qwen) as seen:
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS, eos_token_id=end, pad_token_id=0)
        match = (
            r"^row 1 of 2 generated nothing that has values: the end-of-sequence token does not count, and the token "
        )
        with pytest.raises(InputError, match=match):
            _ = seen.generated
        assert seen.prompt.shape == (2, 16)
        assert seen.generations[0].generated_spans == [(5, 10), (5, 5)]
        close(seen.vectors([(5, 10)], rows=[0])[0], alone(qwen, plain[0, 2:].tolist(), 3, 8))

    def test_a_single_new_token_is_never_fed(self, qwen: Any) -> None:
        with watching(qwen) as seen:
            qwen.generate(PROMPTS, attention_mask=MASK, max_new_tokens=1)
        with pytest.raises(InputError, match=r"^rows 0-1 of 2 generated nothing that has values"):
            _ = seen.generated
        assert seen.prompt.shape == (2, 16)


class TestTurns:
    def test_a_turn_is_what_it_fed(self, qwen: Any) -> None:
        cache = DynamicCache(config=qwen.config)
        with watching(qwen) as seen:
            first = qwen.generate(PROMPTS[1:], past_key_values=cache, **TOKENS)
            asked = torch.cat([first, torch.tensor([[61, 62, 63]])], dim=1)
            second = qwen.generate(asked, past_key_values=cache, **TOKENS)
        assert [generation.prompt_span for generation in seen.generations] == [(0, 5), (10, 14)]
        tokens = second[0].tolist()
        close(seen.generations[0].prompt[0], alone(qwen, tokens, 0, 5))
        close(seen.generations[0].generated[0], alone(qwen, tokens, 5, 10))
        # The last token of the first turn is fed in the second.
        close(seen.prompt[0], alone(qwen, tokens, 10, 14))
        close(seen.generated[0], alone(qwen, tokens, 14, 19))
        close(seen.vectors((0, 19))[0], alone(qwen, tokens, 0, 19))
        match = (
            r"^the cache is kept of the last generate\(\) alone, and another has followed this one; read spans before$"
        )
        with pytest.raises(ReadingError, match=match):
            seen.generations[0].vectors((0, 3))

    def test_a_turn_may_give_its_new_tokens_alone(self, qwen: Any) -> None:
        cache = DynamicCache(config=qwen.config)
        with watching(qwen) as seen:
            first = qwen.generate(PROMPTS[1:], past_key_values=cache, **TOKENS)
            new = torch.tensor([[int(first[0, -1]), 61, 62]])
            second = qwen.generate(new, attention_mask=torch.ones(1, 13), past_key_values=cache, **TOKENS)
        assert seen.generations[1].prompt_span == (10, 13)
        tokens = [*first[0].tolist(), *second[0, 1:].tolist()]
        close(seen.prompt[0], alone(qwen, tokens, 10, 13))
        close(seen.generated[0], alone(qwen, tokens, 13, 18))

    def test_windows_that_were_left_behind_are_named(self) -> None:
        gemma = tiny_causal_lm("gemma3_text")
        with watching(gemma, layers="all") as seen, watching(gemma, layers=[1, 3]) as full:
            found = gemma.generate(PROMPTS[1:], **TOKENS)
        with pytest.raises(
            InputError, match=r"^the cache has lost tokens from 0 on in layers 0, 2 \(a sliding window\)"
        ):
            _ = seen.prompt
        # The window of 7 holds tokens 3 to 9.
        assert seen.generated.shape == (1, 16)
        close(full.prompt[0], alone(gemma, found[0].tolist(), 0, 5, layers=[1, 3]))


class TestNothingChanges:
    def test_generations_are_equal_to_the_bit(self, qwen: Any) -> None:
        options = {
            "attention_mask": MASK, "do_sample": True, "max_new_tokens": 8,
            "return_dict_in_generate": True, "output_logits": True,
        }  # fmt: skip
        torch.manual_seed(11)
        unwatched = qwen.generate(PROMPTS, **options)
        with watching(qwen):
            torch.manual_seed(11)
            watched = qwen.generate(PROMPTS, **options)
        assert torch.equal(unwatched.sequences, watched.sequences)
        assert all(torch.equal(one, other) for one, other in zip(unwatched.logits, watched.logits, strict=True))

    def test_nothing_stays_on_the_model(self, qwen: Any) -> None:
        before = hooks(qwen)
        with watching(qwen) as seen:
            assert "generate" in vars(qwen)
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
            assert hooks(qwen) == before
        assert "generate" not in vars(qwen)
        qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        assert len(seen.generations) == 1

    def test_nor_after_an_error(self, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        before = hooks(qwen)

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), watching(qwen) as seen:
            qwen.generate(PROMPTS, stopping_criteria=StoppingCriteriaList([Stop()]), **TOKENS)
        assert hooks(qwen) == before
        assert "generate" not in vars(qwen)
        assert seen.generations == []

    def test_what_fails_while_reading_is_no_error_of_generate(self, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with watching(qwen) as seen:
            monkeypatch.setattr(seen._reader, "read", lambda *given: 1 / 0)
            assert qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS).shape == (2, 11)
        with pytest.raises(ZeroDivisionError):
            _ = seen.prompt

    def test_nor_is_an_input_that_is_not_understood(self, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qwen, "generate", lambda ids, **more: qwen(ids[0], **more) and ids[0])
        with watching(qwen) as seen:
            assert qwen.generate([PROMPTS]) is PROMPTS
        with pytest.raises(AttributeError):
            _ = seen.prompt

    def test_watches_may_overlap_in_any_order(self, qwen: Any) -> None:
        one, other = watching(qwen), watching(qwen, layers=[0])
        one.__enter__()
        other.__enter__()
        qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        one.__exit__()
        qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        other.__exit__()
        assert "generate" not in vars(qwen)
        qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        assert (len(one.generations), len(other.generations)) == (1, 2)

    def test_what_others_put_in_the_place_of_generate_stays(self, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        own = qwen.generate
        monkeypatch.setattr(qwen, "generate", lambda *given, **more: own(*given, **more))
        put = vars(qwen)["generate"]
        with watching(qwen) as seen:
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        assert vars(qwen)["generate"] is put
        assert len(seen.generations) == 1
        with watching(qwen):
            within = qwen.generate
            monkeypatch.setattr(qwen, "generate", lambda *given, **more: within(*given, **more))
            put = vars(qwen)["generate"]
        assert vars(qwen)["generate"] is put
        assert qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS).shape == (2, 11)

    def test_one_watch_is_entered_once_at_a_time(self, qwen: Any) -> None:
        watch = watching(qwen)
        with (
            watch,
            pytest.raises(ReadingError, match=r"^this watch is under way already; make another with watching\(\)"),
        ):
            watch.__enter__()
        with watch:
            qwen.generate(PROMPTS, attention_mask=MASK, **TOKENS)
        assert len(watch.generations) == 1


def test_other_threads_do_not_mix_in(qwen: Any, plain: Tensor) -> None:
    """Another thread generates in the middle of the watched call, and after it."""
    other = torch.tensor([[51, 52, 53, 54]])
    found: list[Tensor] = []

    def elsewhere() -> None:
        with watching(qwen) as own:
            qwen.generate(other, **TOKENS)
        found.append(own.prompt)
        qwen.generate(other, **TOKENS)

    def run(target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    class Meanwhile(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            if input_ids.shape[1] == 7:
                run(lambda: qwen.generate(other, **TOKENS))
            return torch.tensor([False, False])

    with watching(qwen) as seen:
        qwen.generate(PROMPTS, attention_mask=MASK, stopping_criteria=StoppingCriteriaList([Meanwhile()]), **TOKENS)
        run(elsewhere)
    assert len(seen.generations) == 1
    close(seen.prompt[1], alone(qwen, plain[1].tolist(), 0, 5))
    close(seen.generated[1], alone(qwen, plain[1].tolist(), 5, 10))
    close(found[0][0], alone(qwen, other[0].tolist(), 0, 4))
    assert "generate" not in vars(qwen)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (
                {"num_beams": 3},
                r"^generate\(\) ran a beam search \(num_beams=3\), which reorders the rows of its cache, so",
            ),
            (
                {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=6)},
                r"^generate\(\) ran a beam search \(num_beams=2\)",
            ),
            (
                {"use_cache": False},
                r"^generate\(\) ran with use_cache=False, so there is no cache to read; leave use_cach",
            ),
            (
                {"custom_generate": lambda model, input_ids, **given: model._sample(input_ids, **given)},
                r"^generate\(\) ran with custom_generate or token_healing, so that it is not known where its tokens",
            ),
        ],
    )
    def test_ways_of_decoding_without_a_cache_to_read(self, qwen: Any, options: dict[str, Any], match: str) -> None:
        length = {} if "generation_config" in options else {"max_new_tokens": 6}
        with watching(qwen) as seen:
            assert qwen.generate(PROMPTS, attention_mask=MASK, **length, **options).shape == (2, 11)
        for read in (lambda: seen.prompt, lambda: seen.generated, lambda: seen.vectors((0, 1))):
            with pytest.raises(ReadingError, match=match):
                read()

    def test_a_generation_that_leaves_no_cache(self, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qwen, "generate", lambda ids: ids)
        with watching(qwen) as seen:
            qwen.generate(PROMPTS)
        with pytest.raises(
            ReadingError, match=r"^generate\(\) returned without a key-value cache that could be read: "
        ):
            _ = seen.prompt

    def test_no_generation_at_all(self, qwen: Any) -> None:
        with watching(qwen) as seen:
            pass
        with pytest.raises(
            ReadingError, match=r"^no generate\(\) was seen: call it on the model that is watched, inside"
        ):
            _ = seen.prompt

    def test_models_that_do_not_generate(self) -> None:
        with pytest.raises(
            UnsupportedModelError, match=r"^Qwen3Model does not generate: it has no language model head; "
        ):
            watching(tiny_decoder("qwen3"))
        with pytest.raises(UnsupportedModelError, match=r"^str is no model of transformers"):
            watching("bundled")

    def test_methods_that_no_cache_can_serve(self, qwen: Any) -> None:
        with pytest.raises(RecipeError, match=r"^method 'wva' needs the last token's attention weights"):
            watching(qwen, "wva")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_compiled_model_is_watched(qwen: Any, plain: Tensor) -> None:
    compiled: Any = torch.compile(qwen)
    with watching(compiled) as seen:
        found = compiled.generate(PROMPTS[1:], **TOKENS)
    assert torch.equal(found[0], plain[1])
    close(seen.generated[0], alone(qwen, plain[1].tolist(), 5, 10))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_model_with_adapters_is_watched() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_causal_lm("qwen3"), config)
    with watching(model) as seen:
        found = model.generate(input_ids=PROMPTS[1:], **TOKENS)
    close(seen.generated[0], alone(model, found[0].tolist(), 5, 10))
    assert "generate" not in vars(model.get_base_model())


def test_is_public() -> None:
    assert valuembed.watching is watching
