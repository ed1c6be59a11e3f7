"""A map as it is kept."""

import json

import numpy as np
import pytest
from stored_map import map_of

from valuembed.search.map_file import CorpusMap, places_for, state_of, writable_place

KEYS = ["a#0", "a#1", "b#0", "\u00e4 key"]


def test_comes_back_as_it_was(tmp_path):
    made = map_of(KEYS)
    made.save(tmp_path / "maps" / "map.npz")
    found = CorpusMap.load(tmp_path / "maps" / "map.npz")
    assert (found.state, found.rows, found.keys, found.areas) == (made.state, made.rows, made.keys, made.areas)
    np.testing.assert_array_equal(found.places, made.places)
    np.testing.assert_array_equal(found.area_of, made.area_of)
    assert found.version == made.version != map_of(KEYS, "2:4").version
    assert found.numbers == {key: number for number, key in enumerate(KEYS)}
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["map.npz"], "nothing else is left"


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut off"])
def test_what_is_damaged_is_no_map(tmp_path, content):
    (tmp_path / "map.npz").write_bytes(content)
    assert CorpusMap.load(tmp_path / "map.npz") is None
    assert CorpusMap.load(tmp_path / "absent.npz") is None


def test_another_format_is_no_map(tmp_path):
    path = tmp_path / "map.npz"
    np.savez(path, told=np.frombuffer(json.dumps({"format": 0}).encode(), np.uint8))
    assert CorpusMap.load(path) is None


def test_lies_in_the_index_or_in_the_folder_for_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path / "cache"))
    index = tmp_path / "an.index"
    index.mkdir()
    beside, kept = places_for(str(index))
    assert beside == index / "map.npz"
    assert kept.parent == tmp_path / "cache" / "maps"
    assert writable_place(str(index)) == beside
    assert places_for("s3://bucket/index") == [writable_place("s3://bucket/index")]
    assert writable_place("s3://bucket/index") != kept
    monkeypatch.setenv("VALUEMBED_CACHE", "")
    assert places_for("s3://bucket/index") == []
    assert writable_place("s3://bucket/index") is None


def test_state_differs_after_a_change():
    assert len({state_of(1, 10), state_of(2, 10), state_of(1, 11)}) == 3
