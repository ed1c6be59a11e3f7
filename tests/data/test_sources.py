import os

import pytest

from valuembed.data import sources
from valuembed.data.sources import Source, check_unchanged, find_sources, fingerprint_file
from valuembed.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/b.txt", "data/a.jsonl.zst", "data/deep/c.csv", "data/deep/d.doc", "data/.hidden.txt", "e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(*inputs, **options):
    return [source.name for source in find_sources(inputs, **options)[0]]


def test_files_folders_and_patterns(here):
    assert found("e.txt") == ["e.txt"]
    inside = ["data/a.jsonl.zst", "data/b.txt", "data/deep/c.csv"]
    assert found("data") == found("./data/") == found("data/../data") == inside
    assert found("e.txt", "data") == ["e.txt", *inside]
    assert found("data/*.txt") == ["data/b.txt"]
    assert found("data/**") == found("*a*") == inside
    # Given twice, read once, under the first name.
    assert found("data/b.txt", "data", here / "data") == ["data/b.txt", "data/a.jsonl.zst", "data/deep/c.csv"]
    assert found(here / "e.txt") == [str(here / "e.txt")]


def test_what_is_passed_over_is_named(here):
    assert find_sources(["data"])[1] == ["data/deep/d.doc"]
    assert find_sources(["data/deep/*", "data"])[1] == ["data/deep/d.doc"]
    with pytest.raises(InputError, match=r"d\.doc has the unknown extension '\.doc'"):
        find_sources(["data/deep/d.doc"])


def test_the_output_is_no_input(here):
    (here / "data" / "out").mkdir()
    (here / "data" / "out" / "x.parquet").touch()
    assert "data/out/x.parquet" in found("data")
    for pattern in ("data", "data/**/*", "data/*/*"):
        assert "data/out/x.parquet" not in found(pattern, without=here / "data" / "out")


def test_links_are_followed_and_circles_end(here):
    os.symlink(here / "data" / "deep", here / "data" / "link")
    os.symlink(here / "data", here / "data" / "deep" / "round")
    assert found("data") == ["data/a.jsonl.zst", "data/b.txt", "data/deep/c.csv"]
    (here / "other").mkdir()
    os.symlink(here / "data", here / "other" / "data")
    assert found("other") == ["other/data/a.jsonl.zst", "other/data/b.txt", "other/data/deep/c.csv"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["none.txt"], r"input none\.txt does not exist"),
        (["none*.txt"], r"input none\*\.txt matches no file"),
        (["empty"], "there is no file to read: empty hold none"),
        ([], "there is no file to read$"),
    ],
)
def test_nothing_to_read(here, inputs, message):
    (here / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_sources(inputs)


def test_a_name_with_brackets_is_a_name_first(here):
    (here / "a[1].txt").touch()
    assert found("a[1].txt") == ["a[1].txt"]


def test_a_name_that_is_no_text(here):
    name = os.fsdecode(b"bad\xff.txt")
    try:
        (here / name).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(InputError, match=r"its name is not valid Unicode: lone surrogate U\+DCFF at character 3;"):
        find_sources([name])


def test_a_folder_that_may_not_be_read(here, monkeypatch):
    def walk(folder, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", "data/deep"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match="cannot read the folder data/deep: Permission denied"):
        find_sources(["data"])


def test_keys_tell_names_apart_and_are_fit_for_files():
    # Tables of data leave out what begins with a dot or an underscore.
    keys = {name: Source.named(name).key for name in ("a/b.txt", "c/b.txt", "_é ü.txt", "...", "x" * 300)}
    assert [key.rpartition("-")[0] for key in keys.values()] == ["b.txt", "b.txt", "txt", "texts", "x" * 48]
    assert len(set(keys.values())) == 5
    assert all(len(key.rpartition("-")[2]) == 12 for key in keys.values())


class TestLook:
    def test_sees_every_change_of_a_small_file(self, tmp_path):
        source = Source("a", tmp_path / "a")
        source.path.write_bytes(b"one two")
        before = fingerprint_file(source)
        assert before.size == 7
        source.path.write_bytes(b"one Two")
        assert not fingerprint_file(source).same_content(before)
        source.path.write_bytes(b"one two")
        assert fingerprint_file(source).same_content(before)

    def test_sees_changes_at_the_ends_of_a_large_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "WHOLE", 640)
        source = Source("a", tmp_path / "a")
        content = bytes(range(250)) * 40
        source.path.write_bytes(content)
        before = fingerprint_file(source)
        for at in (0, 9, 9990, 9999):
            source.path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
            assert not fingerprint_file(source).same_content(before)
        source.path.write_bytes(content[:-1])
        assert not fingerprint_file(source).same_content(before)
        # 64 blocks of 10 bytes: what lies between two of them is not looked at.
        source.path.write_bytes(content[:15] + b"\xff" + content[16:])
        assert fingerprint_file(source).same_content(before)

    def test_believes_an_earlier_look_while_size_and_time_are_the_same(self, tmp_path, monkeypatch):
        source = Source("a", tmp_path / "a")
        source.path.write_bytes(b"one")
        before = fingerprint_file(source)
        monkeypatch.setattr(sources, "_blocks", lambda size: 1 / 0)
        assert fingerprint_file(source, before) is before
        os.utime(source.path, ns=(1, 1))
        with pytest.raises(ZeroDivisionError):
            fingerprint_file(source, before)

    def test_files_that_cannot_be_read_or_do_not_stand_still(self, tmp_path, monkeypatch):
        source = Source("a", tmp_path / "a")
        with pytest.raises(InputError, match=r"cannot read \S+a: No such file"):
            fingerprint_file(source)
        source.path.write_bytes(b"one")
        state = fingerprint_file(source)
        check_unchanged(source, state)
        source.path.write_bytes(b"on")
        with pytest.raises(InputError, match="changed since this run began: it had 3 bytes and has 2 now"):
            check_unchanged(source, state)
        blocks = sources._blocks

        def growing(size):
            source.path.write_bytes(b"o" * (size + 1))
            return blocks(size)

        monkeypatch.setattr(sources, "_blocks", growing)
        with pytest.raises(InputError, match="it had 2 bytes and has 3 now"):
            fingerprint_file(source)
