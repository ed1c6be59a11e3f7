"""Run a job on a corpus as tasks of a Ray cluster, each of which joins it as a process does that is started by hand.

Whatever makes a job whole is the job's own: shards that are there or not, locks that die with their process. Ray finds
room for the tasks and has an autoscaler make some, says which have died, and would wait without end and without a word
for room that never comes, or try again for ever with a text that kills: that is watched here.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TypeAlias

from valuembed._utils.optional import require
from valuembed._utils.progress import Progress, ProgressTracker
from valuembed._utils.text import counted
from valuembed.corpus.batches import warn_of_truncation
from valuembed.corpus.claims import Finished
from valuembed.corpus.cluster import Team, check_room, connected, fitting, nodes, ray_settings, reason, refusal
from valuembed.corpus.embed_options import EmbedKwargs, EmbedOptions
from valuembed.corpus.job import KEPT, CorpusSummary, check_done, find_inputs, run_job
from valuembed.corpus.manifest import WORK
from valuembed.data import Source
from valuembed.errors import ClusterError, InputError, OutputError, ValuembedError
from valuembed.execution import cpu_memory
from valuembed.vectors import Encoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

ModelSpec: TypeAlias = Mapping[str, Any] | Callable[[], Encoder]

MOST_LOSSES = 3
"""Workers in a row that may die without finishing a shard; then the fault is the model's or a text's, not a node's."""

PATIENCE = 60.0
"""Seconds that workers may take to begin, and for which there may be none while dead nodes are replaced."""

TICK = 1.0
"""Seconds between two looks at whether there are workers."""

PASSED_ON = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def embed_corpus_on_ray(
    model: ModelSpec,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    workers: int | str | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    wait: float = 0.0,
    progress: bool | Callable[[Progress], object] = True,
    **options: Unpack[EmbedKwargs],
) -> CorpusSummary:
    """Do what :func:`valuembed.corpus.embed_corpus` does, with workers on a Ray cluster.

    The output is the same, and a job may be begun in one way and gone on with in the other. All nodes have to see the
    inputs, the output and a model's folder under the same names, and have the same packages installed. Every worker
    loads the model for itself, and compares it with the job's. One that dies costs the shard at hand and is replaced.

    Args:
        model: the arguments of :func:`valuembed.load`, or a function without arguments that loads a model and can be
            sent to other processes.
        inputs, output: as there.
        progress: as there; it is told shard by shard.
        workers: a number of workers, or ``"2:8"``: two have to fit, and up to eight run when there is room for them,
            for which an autoscaler is asked. None is as many as the cluster has room for.
        cpus_per_worker: CPUs of a worker, and threads that it computes with. Less than one is legal.
        gpus_per_worker: GPUs of a worker, whole or part of one; None is 1 if the cluster has any and the model's
            ``device`` is not the CPU.
        address: of the cluster, ``HOST:PORT`` or ``"auto"``; None is what ``RAY_ADDRESS`` says, else a cluster of this
            machine alone, which is started for the job. Where Ray is connected already, that cluster is used.
        wait: seconds that a cluster has to grow until the least number of workers fits. With 0, what does not fit is
            an error at once.
        options: ``text_column``, ``id_column``, ``precision``, ``dim``, ``chunk``, ``overlap``, ``late``,
            ``rows_per_shard``, ``keep``: as there.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster cannot be reached, has no room, or workers die again and again.
        InputError, OutputError, ReadingError: as there; what is wrong with a model as :func:`valuembed.load`.
    """
    choices = EmbedOptions.of(options, embed_corpus_on_ray)
    if not callable(model):
        model = _findable(model)
        if gpus_per_worker is None and str(model.get("device") or "").startswith("cpu"):
            gpus_per_worker = 0.0
    team = Team.of(workers, cpus_per_worker, gpus_per_worker)
    with ray_settings(address):
        ray = require("ray", "ray")
        sources = find_inputs(inputs, output, choices)
        watch = ProgressTracker({source.name: source.path.stat().st_size for source in sources}, progress)
        with connected(ray, address), closing(watch):
            done = _run_team(ray, team, wait, watch, (model, sources, Path(output).absolute(), choices))
    check_done(Path(output), done)
    warn_of_truncation(done.run.truncated, done.run.embedded)
    return done


def _findable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``load`` whose paths mean the same in any working folder."""
    found = dict(arguments)
    for name in ("model", "method", "cache_folder"):
        value = found.get(name)
        is_name = value == "bundled" or (name == "method" and not str(value).endswith(".json"))
        if isinstance(value, (str, os.PathLike)) and not is_name and os.path.exists(value):
            found[name] = os.path.abspath(value)
    return found


def work(
    job: tuple[ModelSpec, Sequence[Source], Path, EmbedOptions], mark: Path, variables: dict[str, str]
) -> Iterator[str | Finished | CorpusSummary]:
    """The task of a worker.

    Args:
        job: what it joins.
        mark: a file that whoever sees the output sees.
        variables: of the environment, set before torch is imported, which reads them once.

    Yields:
        The node's name, when it begins; each shard that is finished; in the end what came of the job.
    """
    os.environ.update(variables)
    cpu_memory.tune_memory()
    yield platform.node()
    model, sources, folder, choices = job
    try:
        if not mark.exists():
            raise ClusterError(f"{folder} is not there; all nodes have to see the output under the same name")
        if callable(model):
            encoder = model()
        else:
            from valuembed.models import load

            encoder = load(**model)
        yield from run_job(encoder, sources, folder, choices)
    except ValuembedError as error:
        raise type(error)(f"{error} (on node {platform.node()})") from error


def _run_team(
    ray: Any,
    team: Team,
    wait: float,
    watch: ProgressTracker,
    job: tuple[ModelSpec, Sequence[Source], Path, EmbedOptions],
) -> CorpusSummary:
    """Have workers do a job on a cluster that is connected."""
    model, sources, folder, choices = job
    if team.gpus is None:
        team = replace(team, gpus=float(any(node.get("GPU") for node in nodes(ray))))
    if not wait:
        check_room(ray, team)
    # Idle threads that spin would slow down whoever shares the CPUs.
    variables = {"OMP_NUM_THREADS": str(max(1, int(team.cpus))), "OMP_WAIT_POLICY": "PASSIVE"}
    variables |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # Ray's own retries are silent, and tell once more what was told. A task has its process for itself: torch reads the
    # environment once, and memory of a GPU is given back with the process.
    task = ray.remote(max_retries=0, max_calls=1, num_cpus=team.cpus, num_gpus=team.gpus)(work)
    # Names stay what they were given as, paths have to be found from any working folder.
    found = tuple(replace(source, path=source.path.absolute()) for source in sources)
    with _marked(folder) as mark:
        sent = ray.put((model, found, folder, choices))
        done = Crew(ray, watch, lambda: task.remote(sent, mark, variables)).run(team, wait)
    for source in sources:
        watch.passed(source.name, 1.0)
    return replace(done, run=watch.now())


@dataclass
class _Worker:
    """A task that was asked for.

    Attributes:
        losses: workers in a row whose place it took, none of which finished a shard.
        node: where it is, once it has begun.
    """

    losses: int = 0
    node: str | None = None


class Crew:
    """The workers of a job, and those that take the place of such as die.

    Args:
        ray: the module, connected.
        watch: told of every shard.
        start: asks for a task, and returns the stream of what it says.
    """

    def __init__(self, ray: Any, watch: ProgressTracker, start: Callable[[], Any]) -> None:
        self.ray, self.watch, self.start = ray, watch, start
        self.workers: dict[Any, _Worker] = {}
        self.ended: CorpusSummary | InputError | None = None

    def run(self, team: Team, wait: float) -> CorpusSummary:
        """What came of the job, when all that have begun have ended."""
        needed, seen = team.least, time.monotonic()
        try:
            # Those that have no room yet are what an autoscaler goes by.
            for _ in range(team.most or max(fitting(self.ray, team), team.least)):
                self.workers[self.start()] = _Worker()
            while self.workers:
                for stream in self.ray.wait(list(self.workers), timeout=TICK)[0]:
                    self._hear(stream, self.workers.pop(stream))
                begun = sum(worker.node is not None for worker in self.workers.values())
                if begun >= needed:
                    needed, seen = 1, time.monotonic()
                elif self.workers and time.monotonic() - seen > max(wait, PATIENCE):
                    raise ClusterError(f"{refusal(self.ray, replace(team, least=needed), begun)}; {KEPT}")
        finally:
            self._dismiss(list(self.workers))
        if isinstance(self.ended, CorpusSummary):
            return self.ended
        assert self.ended is not None
        raise self.ended

    def _hear(self, stream: Any, worker: _Worker) -> None:
        """Take in what a worker says next; it stays among the workers while there is more to come."""
        try:
            said = self.ray.get(next(stream))
        except self.ray.exceptions.RayTaskError as error:
            said = _cause(error, worker)
        except self.ray.exceptions.RayError as error:
            if self.ended is None:
                self._replace(worker, reason(str(error)))
            return
        if isinstance(said, (CorpusSummary, InputError)):
            # What one node cannot read, another may. Those that have not begun would find nothing to do.
            self.ended = self.ended if isinstance(self.ended, CorpusSummary) else said
            self._dismiss([idle for idle, other in self.workers.items() if other.node is None])
            return
        self.workers[stream] = worker
        if isinstance(said, Finished):
            worker.losses = 0
            self.watch.done(said.name, said.share, **said.counts)
        else:
            worker.node = said

    def _replace(self, worker: _Worker, why: str) -> None:
        losses, node = worker.losses + 1, f" on node {worker.node}" if worker.node else ""
        if losses >= MOST_LOSSES:
            raise ClusterError(
                f"{counted(losses, 'worker')} in a row died without finishing a shard, the last{node}: {why}; {KEPT}"
            )
        warnings.warn(f"a worker{node} died: {why}; another takes its place", UserWarning, stacklevel=6)
        self.workers[self.start()] = _Worker(losses)

    def _dismiss(self, streams: Sequence[Any]) -> None:
        for stream in streams:
            del self.workers[stream]
            # It may be dead already, and so may be the cluster.
            with suppress(Exception):
                self.ray.cancel(stream, force=True)


def _cause(error: Any, worker: _Worker) -> InputError:
    """What a worker could not read; the library's other errors are raised as they are."""
    if isinstance(error.cause, InputError):
        return error.cause
    if isinstance(error.cause, ValuembedError):
        raise error.cause from None
    if worker.node:
        raise error
    raise ClusterError(
        f"no worker can be started: {reason(str(error).strip().splitlines()[-1])}; every node needs the same "
        "packages, and a function that loads a model has to be one that they can import"
    ) from error


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """A file in the output of a job by which a worker knows that it sees the same folder."""
    inside = folder / WORK
    try:
        inside.mkdir(parents=True, exist_ok=True)
        mark = NamedTemporaryFile(prefix="ray-", suffix=".mark", dir=inside)  # noqa: SIM115 - errors of the block are its own
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    with mark:
        yield Path(mark.name)
