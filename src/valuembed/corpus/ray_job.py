"""Run a job on a corpus on a Ray cluster: workers with the model, which take shards that are free, and are replaced.

Whatever makes a job whole is the job's own: shards that are there or not, locks that die with their process, and the
count at the end. Every worker does what a process does that is started by hand on the same folder. Ray finds room for
them, says when one has died, and asks an autoscaler for nodes while some wait for room. Ray Data has actors too, but it
restarts one that dies of its input for ever, and waits in silence for room that will never be there.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from valuembed._utils.progress import Progress, ProgressTracker
from valuembed._utils.text import counted
from valuembed.corpus.batches import warn_of_truncation
from valuembed.corpus.claims import Finished, embed_free, unfinished
from valuembed.corpus.cluster import KEPT, PATIENCE, Room, Team, connect, import_ray, nodes, ray_settings, reason
from valuembed.corpus.embed_options import EmbedKwargs, EmbedOptions
from valuembed.corpus.job import CorpusSummary, run_job
from valuembed.corpus.manifest import Job, Settings, check_settings, read_manifest
from valuembed.errors import ClusterError, InputError, ValuembedError
from valuembed.execution import cpu_memory
from valuembed.vectors import Encoder, VectorSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from valuembed.corpus.chunking import Cutter

ModelSpec: TypeAlias = Mapping[str, Any] | Callable[[], Encoder]

MOST_LOSSES = 3
"""Workers in a row that may die without finishing a shard; then the fault is the model's or a text's, not a node's."""

TICK = 1.0
"""Seconds between two looks at whether something is still to be waited for."""

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
        options: ``text_column``, ``id_column``, ``precision``, ``dim``, ``chunk``, ``overlap``, ``rows_per_shard``,
            ``keep``: as there.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster cannot be reached, has no room, or workers die again and again.
        InputError, OutputError, ReadingError: as there; what is wrong with a model as :func:`valuembed.load`.
    """
    choices = EmbedOptions.of(options, embed_corpus_on_ray)
    ray = import_ray(address)
    if not callable(model):
        model = _findable(model)
        if gpus_per_worker is None and str(model.get("device") or "").startswith("cpu"):
            gpus_per_worker = 0.0
    team = Team.of(workers, cpus_per_worker, gpus_per_worker)
    with Cluster(ray, model, team, address, wait) as cluster:
        done = run_job(cluster, inputs, output, choices, progress)
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


class Worker:
    """A process of the cluster with a model.

    Args:
        model: see :func:`embed_corpus_on_ray`.
        choices: of the job.
        environment: variables that are set before torch is imported, which reads them once.
    """

    def __init__(self, model: ModelSpec, choices: EmbedOptions, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        cpu_memory.tune_memory()
        self.model, self.choices = model, choices

    def begun(self) -> bool:
        """Whether it is there."""
        return True

    @cached_property
    def loaded(self) -> tuple[Encoder, VectorSpec, Settings, Cutter | None]:
        """The model, and what the choices come to with it. It is loaded by a call, whose errors arrive as they are."""
        if callable(self.model):
            encoder = self.model()
        else:
            from valuembed.models import load

            encoder = load(**self.model)
        return encoder, *self.choices.applied_to(encoder)

    def describe(self) -> tuple[VectorSpec, Settings]:
        """What the choices come to with the model."""
        with _on_this_node():
            _, vector_spec, settings, _ = self.loaded
        return vector_spec, settings

    def work(self, job: Job) -> Iterator[str | Finished | dict[str, InputError]]:
        """Write every shard of a job that is free.

        Yields:
            The node's name, when it begins; each shard that is finished; in the end, the inputs that cannot be read.
        """
        broken: dict[str, InputError] = {}
        with _on_this_node():
            encoder, vector_spec, settings, cutter = self.loaded
            record = read_manifest(job.folder)
            if record is None or {source.name for source in job.sources} - {one["name"] for one in record["inputs"]}:
                raise ClusterError(f"{job.folder} is not there; all nodes have to see the output under the same name")
            check_settings(job.folder, record, vector_spec, settings)
            yield platform.node()
            watch = ProgressTracker({name: state.size for name, state in job.states.items()}, False)
            yield from embed_free(job, encoder, cutter, watch, broken)
        yield broken


@contextmanager
def _on_this_node() -> Iterator[None]:
    try:
        yield
    except ValuembedError as error:
        raise type(error)(f"{error} (on node {platform.node()})") from error


class _LostError(Exception):
    """A worker died, or its node."""


@dataclass(eq=False)
class _Hand:
    """A worker, seen from here.

    Attributes:
        actor: Ray's handle.
        losses: workers in a row whose place it took, none of which finished a shard.
        node: where it is, once it has begun.
    """

    actor: Any
    losses: int = 0
    node: str | None = None


class Cluster:
    """The engine of a job: workers on a Ray cluster, for as long as the block lasts.

    Args:
        ray: the module.
        model, address, wait: see :func:`embed_corpus_on_ray`.
        team: the workers.
    """

    def __init__(self, ray: Any, model: ModelSpec, team: Team, address: str | None, wait: float) -> None:
        self.ray, self.model, self.team, self.address, self.wait = ray, model, team, address, wait
        self.hands: list[_Hand] = []
        self.connected_here = False
        self._settings = ExitStack()

    def __enter__(self) -> Cluster:
        self._settings.enter_context(ray_settings(self.address))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._settings:
            for hand in list(self.hands):
                self._dismiss(hand)
            if self.connected_here:
                self.ray.shutdown()

    def begin(self, choices: EmbedOptions) -> tuple[VectorSpec, Settings]:
        """Start the workers; what the choices come to with the model of the one that has loaded it first."""
        self.connected_here = connect(self.ray, self.address)
        if self.team.gpus is None:
            self.team = replace(self.team, gpus=float(any(node.get("GPU") for node in nodes(self.ray))))
        self.room = Room(self.ray, self.team, self.wait)
        self.choices = choices
        self.actors = self.ray.remote(Worker).options(
            num_cpus=self.team.cpus, num_gpus=self.team.gpus, max_restarts=0, max_task_retries=0
        )
        if not self.wait:
            self.room.check()
        asked = [self._hire() for _ in range(self.team.most or max(self.room.fitting(), self.team.least))]
        # Workers that have no room yet are what an autoscaler goes by.
        begun = [hand.actor.begun.remote() for hand in asked]
        ready, _ = self.ray.wait(begun, num_returns=self.team.least, timeout=max(self.wait, PATIENCE))
        if len(ready) < self.team.least:
            raise self.room.refusal(len(ready))
        descriptions = {hand.actor.describe.remote(): hand for hand in asked}
        while True:
            ready, _ = self.ray.wait(list(descriptions), timeout=TICK)
            for reference in ready:
                hand = descriptions.pop(reference)
                try:
                    vector_spec, settings = self._get(reference)
                except _LostError as error:
                    successor = self._replace(hand, error)
                    descriptions[successor.actor.describe.remote()] = successor
                else:
                    return vector_spec, settings
            self.room.check_some_is_left()

    def embed(self, job: Job, watch: ProgressTracker) -> dict[str, InputError]:
        """Have the workers write every shard that is free, and replace those that die."""
        # Names stay what they were given as, paths have to be found from any working folder.
        sources = tuple(replace(source, path=source.path.absolute()) for source in job.sources)
        sent = self.ray.put(replace(job, folder=job.folder.absolute(), sources=sources))
        broken: dict[str, InputError] = {}
        running = {hand.actor.work.remote(sent): hand for hand in self.hands or [self._hire()]}
        while running:
            ready, _ = self.ray.wait(list(running), timeout=TICK)
            for task in ready:
                hand = running[task]
                try:
                    said = self._get(next(task))
                except _LostError as error:
                    del running[task]
                    successor = self._replace(hand, error)
                    running[successor.actor.work.remote(sent)] = successor
                    continue
                if isinstance(said, str):
                    hand.node = said
                elif isinstance(said, Finished):
                    hand.losses = 0
                    watch.done(said.name, said.share, **said.counts)
                else:
                    broken |= said
                    del running[task]
                    self._release(hand, running)
            if not any(hand.node for hand in running.values()):
                self.room.check_some_is_left()
        # What one node could not read, another may have.
        left = {source.name for source, _ in unfinished(job, watch)}
        return {name: error for name, error in broken.items() if name in left}

    def _release(self, hand: _Hand, running: dict[Any, _Hand]) -> None:
        """Give back what a worker had who found nothing more to do; the last one stays for what others leave behind."""
        # Those that have not begun would find nothing either.
        for task in [task for task, other in running.items() if other.node is None]:
            self._dismiss(running.pop(task))
        if running:
            self._dismiss(hand)

    def _hire(self, losses: int = 0) -> _Hand:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # Idle threads that spin would slow down whoever shares the CPUs.
        environment |= {"OMP_NUM_THREADS": str(max(1, int(self.team.cpus))), "OMP_WAIT_POLICY": "PASSIVE"}
        hand = _Hand(self.actors.remote(self.model, self.choices, environment), losses)
        self.hands.append(hand)
        return hand

    def _dismiss(self, hand: _Hand) -> None:
        self.hands.remove(hand)
        # It may be dead already, and so may be the cluster.
        with suppress(Exception):
            self.ray.kill(hand.actor)

    def _replace(self, hand: _Hand, error: _LostError) -> _Hand:
        losses = hand.losses + 1
        node = f" on node {hand.node}" if hand.node else ""
        if losses >= MOST_LOSSES:
            raise ClusterError(
                f"{counted(losses, 'worker')} in a row died without finishing a shard, the last{node}: {error}; {KEPT}"
            )
        warnings.warn(f"a worker{node} died: {error}; another takes its place", UserWarning, stacklevel=2)
        self._dismiss(hand)
        return self._hire(losses)

    def _get(self, reference: Any) -> Any:
        """What a worker says; the library's own errors are raised as they are."""
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, ValuembedError):
                raise error.cause from None
            raise
        except exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                last = reason(str(error).strip().rpartition("\n")[2])
                raise ClusterError(
                    f"no worker can be started: {last}; every node needs the same packages, and a function that loads "
                    "a model has to be one that they can import"
                ) from error
            raise _LostError(reason(str(error))) from error
