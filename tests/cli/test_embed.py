import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fakes import FakeEncoder
from running import fails, run, succeeds
from shared_jobs import TESTS, held, write_texts

from valuembed._utils import optional
from valuembed.cli import embed as cli_embed


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Commands get a fake model and a working folder with two inputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_embed, "load_encoder", lambda options: FakeEncoder())
    write_texts(tmp_path / "in" / "a.jsonl", 25)
    (tmp_path / "in" / "b.txt").write_text("one\n\nthree\n")


def test_a_folder(loaded):
    lines = succeeds("embed", "in", "--lines", "-o", "out", "--rows-per-shard", 10).splitlines()
    assert lines[0] == "out: 27 of 28 rows of 2 inputs embedded, 16 wide, in 4 shards"
    assert lines[1].startswith("this run: 28 rows in ")
    assert (
        lines[2] == "out/rejected.jsonl: 1 row was set aside, each with its reason; the first, in/b.txt, row 2: blank"
    )
    assert len(held(Path("out"))) == 27
    lines = succeeds("embed", "in/*", "-o", "out", "--rows-per-shard", 10).splitlines()
    assert lines[1] == "this run: nothing was left to do"
    message = fails("embed", "in", "--lines", "-o", "out", "--precision", "int8", "--dim", 8, "--rows-per-shard", 16384)
    assert message.startswith("error: output out was begun with other settings")
    assert "width 16 against 8 of 16; precision 'float32' against 'int8'; rows_per_shard 10 against 16384" in message


def test_a_folder_in_another_precision_and_size(loaded):
    assert ", 8 wide, binary, in 2 shards" in succeeds(
        "embed", "in", "--lines", "-o", "out", "--precision", "binary", "--dim", 8
    )


def test_unfinished_inputs_of_earlier_runs_are_named(loaded):
    succeeds("embed", "in", "--lines", "-o", "out")
    next(Path("out").glob("b.txt-*")).unlink()
    assert "unfinished inputs of earlier runs: in/b.txt\n" in succeeds("embed", "in/a.jsonl", "-o", "out")


def test_one_file_in_another_precision_and_size(loaded):
    shown = succeeds("embed", "in/a.jsonl", "-o", "out.parquet", "--precision", "int8", "--dim", "4")
    assert "25 of 25 rows embedded, 4 wide, in " in shown


def test_json(loaded, monkeypatch):
    monkeypatch.setattr(cli_embed, "JSON_EVERY", 0)
    result = run("embed", "in", "--lines", "-o", "out", "--rows-per-shard", 10, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["rows"], found["embedded"], found["rejected"], found["shards"]) == (28, 27, 1, 4)
    assert found["run"]["rows"] == 28
    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert [progress["rows"] for progress in told] == [10, 20, 25, 28]
    assert told[-1]["share"] == 1.0
    assert set(told[0]) == set(found["run"])
    found = json.loads(succeeds("embed", "in/b.txt", "-o", "out.parquet", "--json"))
    assert (found["rows"], found["embedded"], found["rejected"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in/a.jsonl", "in/b.txt", "-o", "out.parquet"], "for INPUT: several inputs need a folder as OUTPUT"),
        (
            ["in/a.jsonl", "-o", "o.parquet", "--late"],
            "for --late: is for a folder as OUTPUT, not for",
        ),
        (
            ["in/a.jsonl", "-o", "o.parquet", "--chunk", "9"],
            "for --chunk: is for a folder as OUTPUT, not for",
        ),
        (["in", "-o", "o.PARQUET", "--rows-per-shard", "9"], "for --rows-per-shard: is for a folder as OUTPUT"),
        (
            ["in", "-o", "out", "--overwrite"],
            "for --overwrite: a folder is gone on with, not replaced; remove it first",
        ),
        (["in", "-o", "out", "--dim", "0"], "Invalid value for '--dim'"),
    ],
)
def test_options_that_do_not_fit_the_output(loaded, options, message):
    assert message in fails("embed", *options, code=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in", "--lines", "-o", "o.parquet"], "error: input in is a folder; give one file"),
        (["none*", "-o", "out"], "error: input none* matches no file"),
        (["in", "--lines", "-o", "out", "--overlap", "3"], "error: overlap=3 is between chunks; give chunk too"),
        (
            ["in", "--lines", "-o", "out", "--late", "--method", "va"],
            "error: late=True reads the chunks of a text from one pass over it; give chunk too",
        ),
        (
            ["in", "--lines", "-o", "out", "--chunk", "9", "--late", "--method", "wva"],
            "error: --late: method 'wva' reads a text at its last token; parts of a text are means over their own "
            "tokens: use va, aligned_va or hidden_mean",
        ),
        (["in", "-o", "out", "--precision", "int4"], "error: precision 'int4' is unknown; legal: float32, float16"),
        (["in/a.jsonl", "-o", "o.parquet", "--precision", "int4"], "error: precision 'int4' is unknown"),
    ],
)
def test_errors_are_one_line(loaded, options, message):
    assert fails("embed", *options).startswith(message)
    assert not Path("o.parquet").exists()


@pytest.mark.process
def test_ctrl_c_says_how_to_go_on(tmp_path):
    """A signal to a process of its own, as a terminal sends it."""
    script = textwrap.dedent(
        """
        import signal, sys, time
        from fakes import FakeEncoder
        from valuembed.cli import embed, main

        # Where tests run in the background, a shell has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Slow(FakeEncoder):
            def encode_document(self, inputs, **options):
                if len(self.calls) == 3:
                    print("at work", flush=True)
                    time.sleep(60)
                return super().encode_document(inputs, **options)

        embed.load_encoder = lambda options: Slow()
        main.app(sys.argv[1:])
        """
    )
    write_texts(tmp_path / "a.txt", 40)
    command = ["embed", "a.txt", "-o", "out", "--rows-per-shard", "10"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; finished shards are kept, the same command goes on from there\n"
    assert len(held(tmp_path / "out")) == 20
    assert not list((tmp_path / "out" / ".work").glob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out", "--engine", "spark"], "for --engine: 'spark' is unknown; legal: local, ray"),
        (["-o", "out", "--workers", "2"], "for --workers: is for --engine ray"),
        (["-o", "out", "--ray-address", "auto"], "for --ray-address: is for --engine ray"),
        (["-o", "out.parquet", "--engine", "ray"], "for --engine: ray is for a folder as OUTPUT, not for a .parquet"),
    ],
)
def test_options_of_a_cluster_that_do_not_fit(loaded, options, message):
    assert message in fails("embed", "in", *options, code=2)


def test_options_reach_the_cluster(loaded, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "valuembed.corpus.embed_corpus_on_ray",
        lambda model, inputs, output, **options: given.update(options, model=model) or 1 / 0,
    )
    options = ["--workers", "2:8", "--cpus-per-worker", 0.5, "--gpus-per-worker", 1, "--ray-address", "auto"]
    result = run("embed", "in", "--lines", "-o", "out", "--engine", "ray", *options, "--ray-wait", 9, "--method", "va")
    assert isinstance(result.exception, ZeroDivisionError)
    assert given["model"]["method"] == "va"
    places = {"workers": "2:8", "cpus_per_worker": 0.5, "gpus_per_worker": 1.0, "address": "auto", "wait": 9.0}
    assert places.items() <= given.items()


def test_without_ray(loaded, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("no", name="ray")

    monkeypatch.setattr(optional, "import_module", missing)
    message = f"error: ray is not installed; run: {optional.install_line('ray')}"
    assert fails("embed", "in", "--lines", "-o", "out", "--engine", "ray").endswith(message)
