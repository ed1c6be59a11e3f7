import io
import threading

import pytest

from valuembed._utils import progress
from valuembed._utils.progress import Progress, ProgressTracker, duration, every, step_done, track, watching_steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_watch_counts_and_estimates(clock):
    told = []
    watch = ProgressTracker({"a": 300, "b": 100}, told.append)
    # Half of a was done before, and 10 seconds take 20 of its bytes.
    watch.passed("a", 0.5)
    clock.now = 10
    watch.done("a", 170 / 300, embedded=4, rejected=1, truncated=2, tokens=50)
    at = told.pop()
    assert (at.rows, at.embedded, at.rejected, at.truncated, at.tokens, at.tokens_per_second) == (5, 4, 1, 2, 50, 5)
    assert (at.share, at.seconds) == (pytest.approx(170 / 400), 10)
    # 230 bytes are left, at 2 bytes a second.
    assert at.seconds_left == pytest.approx(115)
    # Somebody else does b; nothing is told, and nothing goes back.
    watch.passed("b", 1.0)
    watch.passed("b", 0.2)
    assert told == []
    assert watch.now().share == pytest.approx(270 / 400)
    watch.wait()
    assert told.pop().waiting
    watch.done("a", 1.0, embedded=1, rejected=0, truncated=0, tokens=0)
    assert (told[-1].share, told[-1].seconds_left, told[-1].waiting) == (1.0, 0.0, False)


def test_a_step_through_several_inputs_counts_what_it_did_of_all(clock):
    told = []
    watch = ProgressTracker({"a": 100, "b": 60, "c": 240}, told.append)
    clock.now = 10
    watch.all_done({"a": 1.0, "b": 1.0}, embedded=7, rejected=1, truncated=0, tokens=50)
    # 160 of 400 bytes took 10 seconds, so that the other 240 take 15.
    assert (told[-1].rows, told[-1].share, told[-1].seconds_left) == (8, 0.4, 15.0)


def test_there_is_nothing_to_estimate_by_before_anything_is_done(clock):
    now = ProgressTracker({"a": 0}, False).now()
    assert (now.share, now.seconds_left, now.tokens_per_second) == (1.0, None, 0.0)


def test_a_log_gets_a_line_now_and_then(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    watch = ProgressTracker({"a": 100}, True)
    for second in range(0, 130, 10):
        clock.now = second
        watch.done("a", second / 200, embedded=10, rejected=0, truncated=0, tokens=100)
    watch.close()
    assert log.getvalue().splitlines() == [
        "30.0%: 70 rows, 12 tokens/s, 140 s left".replace("140 s", "2 min"),
        "60.0%: 130 rows, 11 tokens/s, 80 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    watch = ProgressTracker({"a": 100}, True)
    watch.done("a", 0.5, embedded=1234, rejected=5, truncated=6, tokens=0)
    watch.close()
    shown = terminal.getvalue()
    assert "embedding:  50%|" in shown
    assert "1,239 rows, 0 tokens/s, 6 truncated, 5 rejected" in shown


def test_nothing_is_shown_to_those_who_ask_for_nothing(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", None)
    watch = ProgressTracker({"a": 100}, False)
    watch.done("a", 0.5, embedded=1, rejected=0, truncated=0, tokens=0)
    watch.close()


def test_every(clock):
    told = []
    seldom = every(10, told.append)
    for second in (0, 5, 10, 15, 19, 30):
        clock.now = second
        seldom(second)
    assert told == [10, 30]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_what_is_not_there_is_not_said():
    at = Progress(1, 1, 0, 0, 2, 2.0, 0.5, 1.0, None)
    assert str(at) == "1 row, 2 tokens/s"
    assert str(Progress(1, 1, 0, 0, 2, 2.0, 0.5, 1.0, 3.0, True)) == (
        "1 row, 2 tokens/s, 3 s left, waiting for other processes"
    )


class TestTrack:
    @pytest.fixture
    def log(self, monkeypatch):
        """Makes stderr a log whose lines come at once; called within a test, since pytest puts its own there first."""

        class Log(io.StringIO):
            def __init__(self):
                super().__init__()
                self.written = threading.Event()

            def flush(self):
                self.written.set()

        def make():
            monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
            monkeypatch.setattr(progress.sys, "stderr", made := Log())
            return made

        return make

    def test_a_log_gets_lines_while_a_step_takes_long(self, log):
        log = log()
        with track(True, total=12, desc="scores") as outer, track(True, total=3000, desc="texts") as inner:
            outer.update(3)
            outer.set_postfix_str("sts: va")
            inner.update(1024)
            log.written.clear()
            assert log.written.wait(60)
            log.written.clear()
            assert log.written.wait(60)
        assert log.getvalue().splitlines()[-1] == "scores: 3 of 12 (sts: va), texts: 1,024 of 3,000, 0 s"

    def test_nothing_is_written_once_all_are_closed(self, log):
        log = log()
        assert list(track(True, [1, 2], desc="Probes")) == [1, 2]
        with track(True, desc="sets") as bar:
            bar.close()
        for thread in threading.enumerate():
            if "_tell" in thread.name:
                thread.join(60)
                assert not thread.is_alive()
        assert progress._LINES._bars == []

    def test_nothing_is_shown_unless_asked(self, log):
        log = log()
        assert list(track(False, [1, 2], desc="Probes")) == [1, 2]
        assert log.getvalue() == ""
        assert progress._LINES._bars == []

    def test_a_terminal_gets_a_bar(self, log, monkeypatch):
        log = log()
        monkeypatch.setattr(log, "isatty", lambda: True, raising=False)
        assert list(track(True, [1, 2], desc="Probes", ncols=60)) == [1, 2]
        assert "Probes: 100%|" in log.getvalue()


def test_steps_are_told_to_whoever_watches():
    told = []
    step_done(1)
    with watching_steps(told.append):
        step_done(2)
        step_done(3)
    step_done(4)
    assert told == [2, 3]
