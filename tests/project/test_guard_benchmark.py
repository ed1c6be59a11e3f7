"""The guard of speed: what it compares, measures again, shows and keeps; and a run with rows that take no time."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from valuembed.testing import tiny_decoder

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guard():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        # The script sets both for the processes that it starts.
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("HF_HUB_OFFLINE", "1")
        import guard

        yield guard


def test_median_and_spread_of_rounds(guard):
    # Quartiles of 1, 2, 4, 6, 7 are 2 and 6: half of what lies between is 2, half of the median of 4.
    assert guard.Measured.of([7, 1, 4, 2, 6]) == guard.Measured(4, 0.5)
    assert guard.Measured.of([3.0]) == guard.Measured(3.0, 0.0)


def test_calls_take_turns_and_change_places(guard):
    called = []
    turns = guard.Turns(lambda: called.append("ours"), lambda: called.append("yardstick"))
    assert turns.measure(2).ratio > 0
    assert called == ["ours", "yardstick", "yardstick", "ours", "ours", "yardstick"]


def test_only_what_lost_more_than_a_tenth_is_named(guard):
    now = {name: guard.Measured(ratio, 0.0) for name, ratio in {"a": 2.21, "b": 2.19, "c": 1.0, "new": 9.0}.items()}
    assert guard.lost(now, {"a": 2.0, "b": 2.0, "c": 2.0, "gone": 1.0}) == ["a"]
    assert guard.lost(now, {}) == []


def test_rows_that_lost_are_measured_again_and_the_lowest_counts(guard):
    def rows(**ratios):
        return {name: guard.Measured(ratio, 0.1) for name, ratio in ratios.items()}

    later = {"noise": iter([2.1]), "slower": iter([2.6, 2.7])}
    asked = []

    def again(row):
        asked.append(row)
        return guard.Measured(next(later[row]), 0.1)

    recorded = {"noise": 2.0, "slower": 2.0, "same": 2.0}
    found = guard.settled(rows(noise=3.0, slower=2.5, same=2.0), recorded, again)
    assert found == rows(noise=2.1, slower=2.5, same=2.0)
    assert asked == ["noise", "slower", "slower"]


def test_the_table(guard):
    now = {"a row": guard.Measured(2.2, 0.013), "a new one": guard.Measured(0.5, 0.0)}
    assert guard.table(now, {"a row": 2.0})[2:] == [
        "| a row | 2.200 | 1.3% | 2.000 | +10.0% |",
        "| a new one | 0.500 | 0.0% | - | - |",
    ]


def test_a_record_is_kept_beside_others(guard, tmp_path):
    path = tmp_path / "guard.json"
    assert guard.read_records(path) == {}
    guard.write_record(path, "one CPU", {"a": guard.Measured(1.0, 0.2), "b": guard.Measured(2.0, 0.2)})
    guard.write_record(path, "another", {"a": guard.Measured(3.0, 0.2)})
    guard.write_record(path, "one CPU", {"b": guard.Measured(1.51236, 0.2)})
    assert guard.read_records(path) == {"another": {"a": 3.0}, "one CPU": {"a": 1.0, "b": 1.5124}}


def test_the_yardstick_multiplies_with_every_matrix_of_the_layers(guard, monkeypatch):
    decoder = tiny_decoder("llama")
    asked = []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda one, weight: asked.append((len(one), weight.shape)))
    guard.products(decoder, guard.TOKENS_AT_ONCE + 3)()
    shapes = [module.weight.shape for module in decoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert len(shapes) == 7 * len(decoder.layers)
    assert asked == [(rows, shape) for rows in (guard.TOKENS_AT_ONCE, 3) for shape in shapes]


@pytest.fixture
def quick(guard, tmp_path, monkeypatch):
    """A guard of one row, on the tiny shape; and the ratios that it will find."""
    ratios: list[float] = []

    class Found:
        def measure(self, rounds):
            return guard.Measured(ratios.pop(0), 0.0)

    def refused(bench):
        raise guard.NotMeasuredError("there is no compiler")

    monkeypatch.setattr(guard, "RECORDS", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "SHAPE", "tiny")
    monkeypatch.setattr(guard, "ROWS", {"a row": lambda bench: Found(), "compiled": refused})
    monkeypatch.setattr(guard, "tune_memory", lambda: None)
    return ratios


def test_a_run_without_a_record_and_with_one(guard, quick, capsys):
    quick[:] = [2.0]
    guard.main([])
    shown = capsys.readouterr().out
    assert "compiled: not measured, there is no compiler" in shown
    assert "guard.json has no record of this CPU with this torch: nothing is compared. --record makes one." in shown
    quick[:] = [2.0]
    guard.main(["--record"])
    assert json.loads(guard.RECORDS.read_text()) == {guard.machine_name(): {"a row": 2.0}}
    quick[:] = [2.1]
    guard.main([])
    capsys.readouterr()
    quick[:] = [2.5, 2.4, 2.3]
    with pytest.raises(SystemExit, match="1"):
        guard.main([])
    shown = capsys.readouterr().out
    assert "| a row | 2.300 | 0.0% | 2.000 | +15.0% |" in shown
    assert "More than 10% above the record: a row" in shown


def test_every_row_makes_two_calls_that_can_be_made(guard, tmp_path):
    """On the tiny shape, but for processes, and for the compiler, which takes long."""
    bench = guard.Bench(guard.make_checkpoint(tmp_path, "tiny", "float32"))
    made = []
    for row, make in guard.ROWS.items():
        if make in (guard.Bench.startup, guard.Bench.compiled):
            continue
        with suppress(guard.NotMeasuredError):
            turns = make(bench)
            turns.ours()
            turns.yardstick()
            made.append(row)
    # Weights of 8 bits may need a package that is not there.
    assert len(made) >= len(guard.ROWS) - 3
