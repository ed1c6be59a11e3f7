"""The map of a real index: made, kept, made anew after a change, and made in a process of its own."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stored import write_embeddings

from valuembed.errors import IndexUnavailableError
from valuembed.search import live_map, map_job
from valuembed.search.index import build_index
from valuembed.search.live_index import LiveIndex
from valuembed.search.live_map import LiveMap
from valuembed.search.map_file import CorpusMap
from valuembed.search.map_job import make_map

pytest.importorskip("lancedb")
pytestmark = [pytest.mark.slow, pytest.mark.process]

TEXTS = [f"{what} number {number}" for what in ("ships", "herbs") for number in range(15)]


@pytest.fixture
def address(tmp_path):
    build_index(write_embeddings(tmp_path / "texts.parquet", TEXTS), tmp_path / "an.index", progress=False)
    return str(tmp_path / "an.index")


def more(address, texts):
    path = write_embeddings(Path(address).parent / "more.parquet", texts)
    build_index(path, address, progress=False)


def finished(a_map, seconds=120):
    end = time.monotonic() + seconds
    while (found := a_map.find())[1]["state"] == "making":
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_every_row_has_a_place(address):
    told = []
    found = make_map(address, lambda step, done: told.append((step, done)))
    assert found.rows == len(found.keys) == len(found.numbers) == len(TEXTS)
    assert found.places.shape == (30, 2)
    assert np.abs(found.places).max() == 1
    assert sum(area.rows for area in found.areas) == 30
    for number, area in enumerate(found.areas):
        assert area.rows == int((found.area_of == number).sum())
        assert set(found.area_of[list(area.examples)].tolist()) == {number}
    assert list(dict.fromkeys(step for step, _ in told)) == ["reading", "placing", "naming"]
    assert told[-1] == ("naming", 1.0)


def test_a_sample_is_the_same_each_time_and_keeps_most_of_its_rows(address):
    sample = make_map(address, most=10)
    assert (sample.rows, len(sample.keys)) == (30, 10)
    assert make_map(address, most=10).keys == sample.keys
    more(address, ["one more", "and another"])
    assert len(set(make_map(address, most=10).keys) & set(sample.keys)) >= 8


def test_rows_that_are_no_landmarks_have_places(address, monkeypatch):
    monkeypatch.setattr(map_job, "LANDMARKS", 20)
    found = make_map(address)
    assert len(np.unique(found.places, axis=0)) == 30
    assert sum(area.rows for area in found.areas) == 30


def test_an_index_of_one_row_and_of_none(tmp_path):
    path = write_embeddings(tmp_path / "one.parquet", ["alone"])
    build_index(path, tmp_path / "one.index", progress=False)
    found = make_map(str(tmp_path / "one.index"))
    assert (len(found.keys), found.places.tolist(), [area.rows for area in found.areas]) == (1, [[0, 0]], [1])
    write_embeddings(path, [])
    build_index(path, tmp_path / "one.index", prune=True, progress=False)
    found = make_map(str(tmp_path / "one.index"))
    assert (found.rows, found.keys, found.areas) == (0, (), ())


class TestLive:
    def test_is_made_kept_and_made_anew(self, address, monkeypatch):
        monkeypatch.setattr(live_map, "LEAST_SECONDS", 0.0)
        a_map = LiveMap(LiveIndex.open(address))
        found, told = a_map.find()
        assert found is None
        assert (told["state"], told["step"]) == ("making", "reading")
        found, told = finished(a_map)
        assert told == {"state": "ready", "step": None, "done": None}
        passages = a_map.passages([found.keys[0], "no key", found.keys[1]])
        assert [passage and passage["key"] for passage in passages] == [found.keys[0], None, found.keys[1]]
        assert passages[0]["text"] in TEXTS
        # Another server finds it where it was left.
        again, told = LiveMap(LiveIndex.open(address)).find()
        assert (again.version, told["state"]) == (found.version, "ready")
        # After a change the old one is shown until the new one is there.
        more(address, ["one more"])
        old, told = a_map.find()
        assert (old.version, told["state"]) == (found.version, "making")
        new, told = finished(a_map)
        assert (len(new.keys), told["state"]) == (31, "ready")
        assert new.version != found.version
        a_map.close()

    def test_a_folder_that_cannot_be_written(self, address, monkeypatch):
        monkeypatch.setattr(live_map, "writable_place", lambda address: None)
        monkeypatch.setattr(live_map, "places_for", lambda address: [])
        a_map = LiveMap(LiveIndex.open(address))
        a_map.find()
        path = a_map._job.path
        found, told = finished(a_map)
        assert (len(found.keys), told["state"]) == (30, "ready")
        assert not path.exists()

    def test_what_fails_is_told_and_not_tried_at_once_again(self, address, monkeypatch, caplog):
        monkeypatch.setattr(live_map, "MAKE", "raise SystemExit(3)")
        a_map = LiveMap(LiveIndex.open(address))
        a_map.find()
        assert finished(a_map)[1]["state"] == "failed"
        assert a_map.find()[1]["state"] == "failed"
        assert [record.message for record in caplog.records] == [
            "the map of the index could not be made: the process ended with status 3"
        ]

    def test_closing_ends_what_is_made(self, address, monkeypatch):
        monkeypatch.setattr(live_map, "MAKE", "import time; time.sleep(600)")
        a_map = LiveMap(LiveIndex.open(address))
        a_map.find()
        a_map.close()
        assert a_map._job.status is not None

    def test_an_index_that_is_gone(self, address):
        a_map = LiveMap(LiveIndex.open(address))
        os.rename(address, f"{address}.moved")
        with pytest.raises(IndexUnavailableError, match="the index is gone from where it was"):
            a_map.find()


def test_the_process_tells_each_step(address, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["-c", address, str(tmp_path / "map.npz")])
    monkeypatch.setattr(os, "nice", lambda by: by)
    map_job.run()
    steps = [json.loads(line)["step"] for line in capfd.readouterr().out.splitlines()]
    assert steps[0] == "reading"
    assert steps[-1] == "naming"
    assert len(CorpusMap.load(tmp_path / "map.npz").keys) == 30
