import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from serving import FakeEngine, until, vector_of

from valuembed.errors import InputError, ReadingError, ServingError, TemplateError, TextFailed
from valuembed.serving.batcher import Batcher, BatcherListener
from valuembed.serving.jobs import EmbedRequest

WAIT = 20


@pytest.fixture
def made():
    """Batchers around engines, started; they are stopped at the end."""
    batchers = []

    def make(engine, **options):
        batcher = Batcher(engine, **options)
        batcher.start()
        until(lambda: batcher.state != "starting")
        engine.steps.clear()
        batchers.append(batcher)
        return batcher

    yield make
    for batcher in batchers:
        batcher.engine.open.set()
        batcher.stop()


def held(batcher):
    """Keep the thread busy with a text of another request, so that what is submitted meanwhile waits."""
    batcher.engine.hold()
    future = batcher.submit(["held"])
    assert batcher.engine.entered.wait(WAIT)
    return future


def failure(future):
    with pytest.raises(TextFailed) as caught:
        future.result(WAIT)
    return caught.value


def test_a_request_gets_its_vectors_in_order(made):
    batcher = made(FakeEngine())
    texts = ["a", "b b b", "c c", "d"]
    found = batcher.submit(texts).result(WAIT)
    np.testing.assert_allclose(found.vectors, [vector_of(text) for text in texts])
    assert (found.vectors.dtype, found.tokens, found.truncated) == (np.float32, 7, [])


def test_no_texts_are_answered_at_once(made):
    found = made(FakeEngine(width=5)).submit([]).result(0)
    assert (found.vectors.shape, found.tokens, found.truncated) == ((0, 5), 0, [])


def test_requests_that_wait_together_share_a_step(made):
    batcher = made(FakeEngine())
    first = held(batcher)
    futures = [batcher.submit([f"text{number}"]) for number in range(20)]
    assert batcher.waiting() == (20, 20)
    batcher.engine.open.set()
    for number, future in enumerate(futures):
        np.testing.assert_allclose(future.result(WAIT).vectors, [vector_of(f"text{number}")])
    assert first.result(WAIT).tokens == 1
    assert [len(step) for step in batcher.engine.steps] == [1, 20]
    until(lambda: batcher.waiting() == (0, 0))


def test_a_request_of_many_texts_holds_up_nobody(made):
    batcher = made(FakeEngine(step_tokens=10))
    held(batcher)
    many = batcher.submit([f"many{number}" for number in range(500)])
    one = batcher.submit(["one"])
    batcher.engine.open.set()
    one.result(WAIT)
    many.result(WAIT)
    # In the first round after the one that was held, in turn with the other request.
    assert "one" in batcher.engine.steps[1]
    assert "many0" in batcher.engine.steps[1]


def test_a_round_keeps_to_its_budget_of_tokens(made):
    """A text's tokens are guessed from its characters, here far too low: the rest of a round goes back."""
    batcher = made(FakeEngine(step_tokens=10))
    held(batcher)
    texts = [" ".join("abcd"[:1] * 4) + f" {number}" for number in range(30)]
    future = batcher.submit(texts)
    other = batcher.submit(["x y z " * 20])
    batcher.engine.open.set()
    np.testing.assert_allclose(future.result(WAIT).vectors, [vector_of(text) for text in texts])
    assert other.result(WAIT).tokens == 60
    for step in batcher.engine.steps:
        assert sum(len(text.split()) for text in step) <= 10 or len(step) == 1
    # Nothing is tokenized twice.
    words = [text for of_call in batcher.engine.prepared for text in of_call]
    assert sorted(words) == sorted(["a", "held", "x y z " * 20, *texts])


def test_manners_are_tokenized_apart_and_computed_together(made):
    batcher = made(FakeEngine())
    held(batcher)
    manners = [EmbedRequest("query"), EmbedRequest("document"), EmbedRequest(prompt="p"), EmbedRequest(template="t")]
    futures = [batcher.submit(["x"], manner) for manner in manners]
    batcher.engine.open.set()
    for future, frame in zip(futures, ("query", "document", "p", "t"), strict=True):
        np.testing.assert_allclose(future.result(WAIT).vectors, [vector_of(f"{frame}x")])
    assert len(batcher.engine.steps) == 2


def test_a_cancelled_request_leaves_the_queue_at_once_and_is_never_computed(made):
    batcher = made(FakeEngine(step_tokens=4))
    held(batcher)
    gone = batcher.submit(["gone"] * 50)
    stays = batcher.submit(["stays"])
    assert gone.cancel()
    assert batcher.waiting() == (1, 1)
    batcher.engine.open.set()
    assert stays.result(WAIT).tokens == 1
    assert not any("gone" in step for step in batcher.engine.steps)


def test_a_request_that_is_cancelled_while_it_is_computed_harms_nobody(made):
    batcher = made(FakeEngine())
    gone = held(batcher)
    stays = batcher.submit(["stays"])
    assert gone.cancel()
    batcher.engine.open.set()
    assert stays.result(WAIT).tokens == 1
    with pytest.raises(CancelledError):
        gone.result(0)
    assert batcher.state == "ready"


@pytest.mark.parametrize(
    ("text", "cause", "message"),
    [
        ("untokenizable", InputError, "it is untokenizable"),
        ("unreadable", ReadingError, "a vector is not finite"),
        ("poison", RuntimeError, "failed on a text with poison"),
    ],
)
def test_a_text_that_fails_does_not_fail_its_neighbours(made, text, cause, message):
    batcher = made(FakeEngine())
    held(batcher)
    good = [batcher.submit([f"good{number}"]) for number in range(5)]
    bad = batcher.submit(["fine", text])
    more = [batcher.submit([f"more{number}"]) for number in range(5)]
    batcher.engine.open.set()
    error = failure(bad)
    assert (error.index, type(error.cause), str(error.cause)) == (1, cause, message)
    for future in good + more:
        assert future.result(WAIT).tokens == 1
    assert batcher.state == "ready"


def test_a_manner_that_cannot_be_fails_the_requests_that_have_it(made):
    batcher = made(FakeEngine())
    held(batcher)
    bad, good = batcher.submit(["a", "b"], EmbedRequest(template="nonsense")), batcher.submit(["a"])
    batcher.engine.open.set()
    assert isinstance(failure(bad).cause, TemplateError)
    assert good.result(WAIT).tokens == 1


def test_texts_that_are_cut_are_reported_or_refused(made):
    batcher = made(FakeEngine())
    texts = ["a", "b" * 1001, "c"]
    assert batcher.submit(texts).result(WAIT).truncated == [1]
    error = failure(batcher.submit(texts, truncate=False))
    assert (error.index, str(error.cause)) == (1, "it is longer than the model takes, and truncate is false")


def test_what_nobody_expected_is_logged_without_the_text(made, caplog):
    batcher = made(FakeEngine())
    failure(batcher.submit(["a secret with poison"]))
    assert caplog.messages[0].startswith("a text could not be embedded: RuntimeError at batcher.py:")
    assert "secret" not in caplog.text
    assert "poison" not in caplog.text


def test_a_model_that_fails_on_everything_is_dead(made, caplog):
    batcher = made(FakeEngine())
    first = held(batcher)
    waits = batcher.submit(["waits"])
    batcher.engine.broken = RuntimeError("device-side assert")
    batcher.engine.open.set()
    assert str(failure(first).cause) == "device-side assert"
    with pytest.raises(ServingError, match=r"^the model takes no requests: its thread is dead; ask another replica"):
        waits.result(WAIT)
    until(lambda: batcher.state == "dead")
    for use in (lambda: batcher.submit(["x"]), lambda: batcher.call(int)):
        with pytest.raises(ServingError, match=r"its thread is dead"):
            use()
    assert any(message.startswith("the model's thread has died: RuntimeError at ") for message in caplog.messages)


def test_an_exception_outside_of_a_step_kills_the_thread_and_refuses_what_is_in_it(made):
    class Broken(BatcherListener):
        def computed(self, texts, tokens, seconds):
            if texts == 2:
                raise KeyError("nobody catches this")

    batcher = made(FakeEngine(), watch=Broken())
    with pytest.raises(ServingError, match=r"its thread is dead"):
        batcher.submit(["a", "b"]).result(WAIT)
    until(lambda: batcher.state == "dead")


def test_a_model_that_cannot_embed_at_all_is_dead_from_the_start(made):
    engine = FakeEngine()
    engine.broken = ReadingError("weights are damaged")
    assert made(engine).state == "dead"


def test_a_step_that_takes_too_long_is_stuck_until_it_ends(made):
    batcher = made(FakeEngine(), stuck_after=0.02)
    future = held(batcher)
    until(lambda: batcher.state == "stuck")
    with pytest.raises(ServingError, match=r"its thread is stuck"):
        batcher.submit(["x"])
    batcher.engine.open.set()
    assert future.result(WAIT).tokens == 1
    until(lambda: batcher.state == "ready")
    assert batcher.submit(["x"]).result(WAIT).tokens == 1


def test_stopping_finishes_the_round_and_refuses_the_rest(made):
    batcher = made(FakeEngine(step_tokens=1))
    first, waits = held(batcher), batcher.submit(["waits"])
    call = batcher.call(int)
    threading.Timer(0.05, batcher.engine.open.set).start()
    batcher.stop()
    assert first.result(0).tokens == 1
    for future in (waits, call):
        with pytest.raises(ServingError, match=r"its thread is stopped"):
            future.result(0)
    assert batcher.state == "stopped"
    with pytest.raises(ServingError, match=r"its thread is stopped"):
        batcher.submit(["x"])


def test_other_work_is_done_on_the_same_thread(made):
    batcher = made(FakeEngine())
    assert batcher.call(threading.current_thread).result(WAIT).name == "valuembed-model"
    with pytest.raises(ZeroDivisionError):
        batcher.call(lambda: 1 / 0).result(WAIT)
    held(batcher)
    never = batcher.call(lambda: pytest.fail("it was cancelled"))
    assert never.cancel()
    after = batcher.call(lambda: "after")
    batcher.engine.open.set()
    assert after.result(WAIT) == "after"
    assert batcher.state == "ready"


def test_many_threads_at_once_get_their_own(made):
    batcher = made(FakeEngine(step_tokens=50))
    wrong = []

    def client(name):
        for number in range(20):
            texts = [f"{name} {number} {part}" for part in range(number % 4 + 1)]
            found = batcher.submit(texts).result(WAIT)
            if not np.allclose(found.vectors, [vector_of(text) for text in texts]):
                wrong.append(texts)

    threads = [threading.Thread(target=client, args=(f"client{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_watch_hears_of_waits_and_steps(made):
    heard = []

    class Noted(BatcherListener):
        def waited(self, seconds):
            assert seconds >= 0
            heard.append("waited")

        def computed(self, texts, tokens, seconds):
            heard.append((texts, tokens, seconds >= 0))

    batcher = made(FakeEngine(), watch=Noted())
    batcher.submit(["a b", "c"]).result(WAIT)
    assert heard == ["waited", (2, 3, True)]


def test_the_time_to_clear_the_queue_follows_the_speed(made):
    batcher = made(FakeEngine())
    assert batcher.seconds_to_clear() == 0
    batcher.submit(["a"]).result(WAIT)
    held(batcher)
    batcher.submit(["b", "c"])
    assert batcher.seconds_to_clear() > 0
