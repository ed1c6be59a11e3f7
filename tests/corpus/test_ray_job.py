"""Jobs on a Ray cluster: the same rows and vectors as without, whoever dies; and errors where Ray would wait."""

from __future__ import annotations

import ast
import gzip
import os
import platform
import random
import socket
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from fakes import FakeEncoder
from ray_models import ALWAYS_DIE, DIE, FAIL, Loading
from shared_jobs import TESTS, held, same, write_texts

from valuembed._utils import optional
from valuembed._utils.progress import ProgressTracker
from valuembed.corpus import cluster, job, ray_job
from valuembed.corpus.cluster import Team, check_room, connected, fitting, ray_settings, reason, refusal
from valuembed.corpus.embed_options import EmbedOptions
from valuembed.corpus.job import embed_corpus
from valuembed.corpus.ray_job import Crew, embed_corpus_on_ray, work
from valuembed.errors import CheckpointError, ClusterError, InputError, MissingExtraError, OutputError, ReadingError

ROWS = 140


@pytest.fixture(scope="module")
def ray():
    """A cluster of two CPUs on this machine."""
    with ray_settings("local"):
        module = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
        # Ray forgets the handles of the processes that it starts, while they run.
        warnings.simplefilter("ignore", ResourceWarning)
        module.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=cluster.OBJECT_STORE,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield module
        module.shutdown()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with three inputs of 140 rows, and what a run without a cluster makes of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "POLL_SECONDS", 0.05)
    for name, count in (("a.jsonl", 77), ("b.txt", 60), ("c.txt", 3)):
        write_texts(tmp_path / "in" / name, count, name)
    (tmp_path / "notes").mkdir()
    embed_corpus(FakeEncoder(width=256), "in", "whole", rows_per_shard=7, progress=False)
    return tmp_path


def embed(here, output="out", inputs="in", **options):
    named = {name: options.pop(name) for name in ("behaviour", "shift", "missing") if name in options}
    options = {"rows_per_shard": 7, "workers": 2, "cpus_per_worker": 0.5, "progress": False, **options}
    return embed_corpus_on_ray(Loading(here / "notes", **named), inputs, output, **options)


def workers(here):
    return [ast.literal_eval(path.read_text()) for path in sorted((here / "notes").glob("*.worker"))]


@pytest.mark.slow
@pytest.mark.ray
def test_one_of_two_workers_is_killed_in_the_middle(ray, here):
    told = []
    with pytest.warns(UserWarning, match=r"^a worker on node \S+ died: .*; another takes its place$"):
        done = embed(here, behaviour=DIE, progress=told.append)
    assert (done.rows, done.embedded, done.rejected, done.inputs) == (ROWS, ROWS, 0, 3)
    assert (done.run.rows, done.run.share) == (ROWS, 1.0)
    assert same(here / "out", here / "whole")
    # Row for row the same files, too.
    assert {path.name for path in Path("out").glob("*")} == {path.name for path in Path("whole").glob("*")}
    assert [progress.rows for progress in told] == sorted(progress.rows for progress in told)
    assert (here / "notes" / "died").exists()
    assert not list(Path("out/.work").glob("*.mark"))
    # Each was given its threads before torch was there to ask for them.
    assert len(workers(here)) >= 2
    expected = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    assert all(found == (False, expected) for found in workers(here))
    # What a run without a cluster has begun, this one goes on with, and finds complete.
    assert embed(here, "whole", workers=1).run.rows == 0


@pytest.mark.slow
@pytest.mark.ray
def test_one_large_input_is_shared_and_a_job_is_gone_on_with(ray, here):
    with pytest.raises(ReadingError, match=r"^the pass gave nothing \(on node \S+\)$"):
        embed(here, inputs="in/a.jsonl", behaviour=FAIL, workers=1)
    assert held(here / "out") == {}
    with pytest.warns(UserWarning, match="another takes its place"), pytest.raises(ClusterError) as caught:
        embed(here, inputs="in/a.jsonl", behaviour=ALWAYS_DIE, workers=1)
    assert "3 workers in a row died without finishing a shard, the last on node " in str(caught.value)
    assert str(caught.value).endswith("; finished shards are kept, the same command goes on from there")
    finished = len(held(here / "out"))
    assert 0 < finished < 77
    done = embed(here, inputs="in/a.jsonl")
    assert (done.rows, done.run.rows) == (77, 77 - finished)
    whole = {key: row for key, row in held(here / "whole").items() if key[0] == "in/a.jsonl"}
    assert held(here / "out") == whole


@pytest.mark.ray
def test_other_weights_on_a_node_and_a_model_that_is_not_there(ray, here):
    with pytest.raises(OutputError, match=r"begun with other settings .*: other weights or prompts: the same sentence"):
        embed(here, shift=5.0)
    with pytest.raises(CheckpointError, match=r"^folder 'gone' does not exist \(on node \S+\)$"):
        embed(here, missing=True, workers=1)


@pytest.mark.ray
def test_a_function_that_the_nodes_do_not_have(ray, here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    (here / "only_here.py").write_text("def load(): ...")
    load = import_module("only_here").load
    message = r"^no worker can be started: ModuleNotFoundError: No module named 'only_here'; every node needs the"
    with pytest.raises(ClusterError, match=message):
        embed_corpus_on_ray(load, "in", "out", workers=1, cpus_per_worker=0.5, progress=False)


@pytest.mark.ray
def test_an_input_that_is_damaged_is_told_of_when_the_others_are_done(ray, here):
    draw = random.Random(1)
    whole = gzip.compress(b"".join(draw.randbytes(25_000).hex().encode() + b"\n" for _ in range(60)))
    (here / "in" / "d.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"^1 of 4 inputs could not be read to its end, the other 3 are done: input"):
        embed(here, workers=1)
    rows = [row for file, row in held(here / "out") if file == "in/d.txt.gz"]
    assert rows == list(range(len(rows)))
    assert len(held(here / "out")) == ROWS + len(rows)


@pytest.mark.ray
def test_too_little_room_is_an_error_at_once(ray, here):
    message = (
        r"^3 workers with 1 CPU each do not fit into the cluster, but 2: it has 1 node with 2 CPUs and 0 GPUs; ask"
    )
    with pytest.raises(ClusterError, match=message):
        embed(here, workers=3, cpus_per_worker=1)
    with pytest.raises(ClusterError, match=r"^1 worker with 0\.5 CPUs and 1 GPU does not fit into the cluster, but 0"):
        embed(here, workers="1:4", gpus_per_worker=1)
    assert not Path("out").exists()


class FakeRay:
    """A cluster as far as its room is concerned, whose tasks never begin."""

    def __init__(self, nodes, free):
        self._nodes, self._free, self.cancelled = nodes, free, []

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self._nodes] + [
            {"Alive": False, "Resources": {"CPU": 99}}
        ]

    def available_resources(self):
        return self._free

    def wait(self, streams, timeout):
        return [], streams

    def cancel(self, stream, force):
        self.cancelled.append(stream)


class TestRoom:
    def test_parts_of_a_cpu_add_up(self):
        assert Team(cpus=0.1).fit_into({"CPU": 0.3}) == 3
        assert Team(cpus=0.5, gpus=0.25).fit_into({"CPU": 4, "GPU": 1}) == 4
        # A worker has to fit into one node: four nodes of 3 CPUs have no room for one that takes 4.
        assert fitting(FakeRay([{"CPU": 3}] * 4, {}), Team(cpus=4)) == 0

    def test_what_others_use_is_not_free(self, monkeypatch):
        monkeypatch.setattr(cluster, "SETTLE", 0)
        ray = FakeRay([{"CPU": 4, "GPU": 1}, {"CPU": 4}], {"CPU": 1.5})
        message = r"^2 workers with 1 CPU each fit into the cluster, but 1 beside what others do on it; ask for fewer"
        with pytest.raises(ClusterError, match=message):
            check_room(ray, Team(2, 2, 1.0, 0.0))

    def test_nodes_are_counted_by_kind(self):
        ray = FakeRay([{"CPU": 4}, {"CPU": 4}, {"CPU": 8, "GPU": 1}], {})
        message = (
            "1 worker with 16 CPUs and 1 GPU does not fit into the cluster, but 0: it has 2 nodes with 4 CPUs and "
        )
        assert str(refusal(ray, Team(1, 1, 16, 1), 0)).startswith(f"{message}0 GPUs, 1 node with 8 CPUs and 1 GPU; ask")

    def test_workers_that_do_not_begin(self, monkeypatch):
        monkeypatch.setattr(ray_job, "PATIENCE", 0)
        for nodes, message in (
            ([{"CPU": 4}], r"does not fit into the cluster, but 0: it has 1 node with 4 CPUs and 0 GPUs; .*"),
            ([{"CPU": 4, "GPU": 1}], r"fits into the cluster, but 0 beside what others do on it; .*"),
        ):
            ray, streams = FakeRay(nodes, {}), iter("abc")
            crew = Crew(ray, ProgressTracker({}, False), lambda streams=streams: next(streams))
            expected = rf"^1 worker with 1 CPU and 1 GPU {message}; finished shards are kept, the same command goes on"
            with pytest.raises(ClusterError, match=expected):
                crew.run(Team(1, 2, cpus=1, gpus=1), 0)
            assert ray.cancelled == ["a", "b"]

    def test_numbers_of_workers(self):
        assert Team.of("2:8", 0.5, None) == Team(2, 8, 0.5, None)
        assert Team.of(3, 1, 2) == Team.of("3", 1.0, 2.0) == Team(3, 3, 1.0, 2.0)
        assert Team.of(None, 1, 0) == Team(1, None, 1.0, 0.0)

    @pytest.mark.parametrize("workers", ["0", "4:2", "two", "2:", ":2", "1.5", -1])
    def test_numbers_of_workers_that_mean_nothing(self, workers):
        if workers == "2:":
            assert Team.of(workers, 1, 0) == Team(2, 2, 1, 0)
            return
        with pytest.raises(InputError, match=r"^workers=.* has to be a number from 1 on, or LEAST:MOST such as '2:8'$"):
            Team.of(workers, 1, 0)

    def test_shares_that_mean_nothing(self):
        for cpus in (0, -1, float("nan")):
            with pytest.raises(InputError, match=r"^cpus_per_worker=\S+ has to be above 0; 0\.5 is half a CPU$"):
                Team.of(1, cpus, 0)
        for gpus in (-1, 1.5, float("nan")):
            with pytest.raises(InputError, match=r"^gpus_per_worker=\S+ has to be 0, a part of 1, or a whole number$"):
                Team.of(1, 1, gpus)


def test_a_node_that_does_not_see_the_output(here, monkeypatch):
    monkeypatch.setattr(ray_job.cpu_memory, "tune_memory", lambda: None)
    said = work((Loading(here / "notes"), [], here / "out", EmbedOptions()), here / "out" / "mark", {})
    assert next(said) == platform.node()
    message = r"^\S+out is not there; all nodes have to see the output under the same name \(on node \S+\)$"
    with pytest.raises(ClusterError, match=message):
        next(said)
    assert list((here / "notes").iterdir()) == []


class Unconnected:
    """Ray before it is connected; it does not get as far as that."""

    def is_initialized(self):
        return False

    def init(self, **options):
        raise ConnectionError("Could not find any running Ray instance.")


def test_addresses():
    def reach(address):
        with connected(Unconnected(), address):
            raise AssertionError("it was reached")

    with pytest.raises(
        ClusterError, match=r"^address 'ray://head:10001' is for clients outside of a cluster; run this"
    ):
        reach("ray://head:10001")
    with pytest.raises(
        ClusterError, match=r"^cannot reach a Ray cluster at 'auto': Could not find any running Ray inst"
    ):
        reach("auto")
    # A port that was free a moment ago.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=rf"^cannot reach a Ray cluster at '127\.0\.0\.1:{port}': .*refused"):
        reach(f"127.0.0.1:{port}")


def test_what_ray_says_is_one_line():
    said = (
        "The actor died.\n\tpid: 3\nWorker exit detail: Worker died. code 2. End of file. Some common causes include:"
    )
    assert reason(said) == "Worker died. code 2. End of file"
    assert reason("short\x1b[0m") == "short\N{REPLACEMENT CHARACTER}[0m"


def test_without_ray(here, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("no", name="ray")

    monkeypatch.setattr(optional, "import_module", missing)
    with pytest.raises(MissingExtraError) as caught:
        embed(here)
    assert str(caught.value) == f"ray is not installed; run: {optional.install_line('ray')}"
