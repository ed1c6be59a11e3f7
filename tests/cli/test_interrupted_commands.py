"""What all commands share: what an interrupt says, and what other libraries may not say."""

import logging
import os
from pathlib import Path

import pytest
from fakes import FakeEncoder
from running import fails

from valuembed.cli import embed as cli_embed, framework as commands, main as cli
from valuembed.cli.output import keeps
from valuembed.errors import InputError


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def kept_of(folder, written, files="**/*"):
    """What an interrupt says after some files were written."""
    with pytest.raises(KeyboardInterrupt) as caught, keeps(folder, "the first half is kept", files):
        interrupt_after(written)
    return list(caught.value.args)


def interrupt_after(written):
    for path in written:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    raise KeyboardInterrupt


class TestKeeps:
    def test_what_was_written_is_told(self, tmp_path):
        assert kept_of(tmp_path, [tmp_path / "half" / "one.json"]) == ["the first half is kept"]

    def test_nothing_is_told_of_what_was_there_before(self, tmp_path):
        (tmp_path / "old.json").touch()
        os.utime(tmp_path / "old.json", (1, 1))
        assert kept_of(tmp_path, []) == kept_of(tmp_path / "none", []) == kept_of(None, []) == []

    def test_only_of_the_files_that_count(self, tmp_path):
        pattern = "checkpoint-*/trainer_state.json"
        assert kept_of(tmp_path, [tmp_path / "run.json"], pattern) == []
        written = [tmp_path / "checkpoint-2" / "trainer_state.json"]
        assert kept_of(tmp_path, written, pattern) == ["the first half is kept"]


GOES_ON = "the same command goes on from there"
LONG = {
    "evaluate": ("valuembed.evaluation.evaluate", ["--tasks", "x"], f"finished scores are kept in out, {GOES_ON}"),
    "reproduce": ("valuembed.research.reproduce", [], f"finished scores are kept in out, {GOES_ON}"),
    "sweep": ("valuembed.analysis.sweep", ["--task", "x"], f"finished scores are kept in out, {GOES_ON}"),
    "cost": (
        "valuembed.research.measure_cost",
        [],
        "what was finished is in out, marked as incomplete; the same command",
    ),
    "probe segments": (
        "valuembed.research.probe_segments",
        ["--corpus", "x"],
        "what was finished is in out, marked as",
    ),
    "probe next-token": (
        "valuembed.research.probe_next_token",
        ["--corpus", "x"],
        "what was finished is in out, mar",
    ),
    "index": ("valuembed.search.build_index", ["x"], f"rows that were added are kept, {GOES_ON}"),
    "train": ("valuembed.training.train", ["--pairs", "x"], f"the last checkpoint is kept, {GOES_ON}"),
}


@pytest.mark.parametrize("command", LONG)
def test_an_interrupt_says_what_is_kept(command, tmp_path, monkeypatch):
    function, arguments, said = LONG[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("valuembed.cli.output.DEMONSTRATION_NOTE", "note")
    monkeypatch.setattr(function, interrupt)
    told = fails(*command.split(), *arguments, "-o", "out", code=130)
    assert told.removeprefix("note ") == "interrupted; nothing was written"

    def writing(*args, **kwargs):
        name = Path("out.training/checkpoint-3/trainer_state.json" if command == "train" else "out/scores/a.json")
        name.parent.mkdir(parents=True)
        name.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(function, writing)
    told = fails(*command.split(), *arguments, "-o", "out", code=130)
    assert told.removeprefix("note ").startswith(f"interrupted; {said}")


def test_an_interrupt_of_a_job_on_one_file(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("a text\n")
    monkeypatch.setattr(cli_embed, "load_encoder", lambda options: FakeEncoder())
    monkeypatch.setattr("valuembed.corpus.embed_file", interrupt)
    told = fails("embed", tmp_path / "in.txt", "-o", tmp_path / "out.parquet", code=130)
    assert told == f"interrupted; {cli_embed.NOTHING_KEPT}"


def test_other_libraries_say_nothing_on_the_side(monkeypatch):
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    before = logging.get_verbosity(), hub.get_verbosity()
    try:
        commands.quiet()
        assert logging.get_verbosity() == logging.ERROR
        assert hub.get_verbosity() == hub.ERROR
        assert not logging.is_progress_bar_enabled()
        logging.set_verbosity_info()
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
        commands.quiet()
        assert logging.get_verbosity() == logging.INFO, "whoever asks for it gets it"
    finally:
        logging.set_verbosity(before[0])
        hub.set_verbosity(before[1])


def test_what_a_load_says_is_said_once(monkeypatch, caplog):
    log = logging.getLogger("valuembed.backbone.dtypes")

    def loads_twice(options):
        for _ in range(2):
            log.warning("computing in %s", "float32")
        raise InputError("no more")

    monkeypatch.setattr(cli, "load_encoder", loads_twice)
    fails("similarity", "a", "b")
    assert [record.getMessage() for record in caplog.records] == ["computing in float32"]
    assert log.filters == []
