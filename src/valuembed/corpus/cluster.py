"""A Ray cluster: connected to or started, and whether it has room for workers; Ray itself waits for room in silence."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from valuembed._utils.process_state import environment, log_level
from valuembed._utils.text import counted, inflected, printable, shortened
from valuembed.errors import ClusterError, InputError

LOCAL = "local"
"""What Ray calls a cluster of this machine alone, started anew."""

SETTLE = 5.0
"""Seconds after which a cluster that has just been started knows what is free."""

KNOCK_SECONDS = 10.0
OBJECT_STORE = 80 << 20
"""Bytes of memory for what workers pass on to each other, which is next to nothing; Ray takes no less."""


@dataclass(frozen=True)
class Team:
    """How many workers there are, and what each of them takes of the cluster.

    Attributes:
        least: for which there has to be room.
        most: with as many as the cluster has room for in between; None is as many as it has room for at the beginning.
        cpus: of a worker, also less than one.
        gpus: of a worker; None is one if the cluster has any.
    """

    least: int = 1
    most: int | None = None
    cpus: float = 1.0
    gpus: float | None = None

    @classmethod
    def of(cls, workers: int | str | None, cpus: float, gpus: float | None) -> Team:
        """What is meant by a number, or a range such as ``"2:8"``, of workers.

        Raises:
            InputError: numbers that mean nothing.
        """
        least, _, most = ("1" if workers is None else str(workers)).partition(":")
        try:
            team = cls(int(least), None if workers is None else int(most or least), cpus, gpus)
        except ValueError:
            team = cls(0)
        if not 1 <= team.least <= (team.most or team.least):
            raise InputError(f"workers={workers!r} has to be a number from 1 on, or LEAST:MOST such as '2:8'")
        if not cpus > 0:
            raise InputError(f"cpus_per_worker={cpus:g} has to be above 0; 0.5 is half a CPU")
        if gpus is not None and not (gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
            raise InputError(f"gpus_per_worker={gpus:g} has to be 0, a part of 1, or a whole number")
        return team

    def fit_into(self, resources: Mapping[str, float]) -> int:
        """How many workers there is room for."""
        asked = {"CPU": self.cpus, "GPU": self.gpus or 0.0}
        # What is asked for in parts of one adds up with the errors of such sums.
        return min(int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in asked.items() if amount)

    def __str__(self) -> str:
        share = _units(self.cpus, "CPU") + (f" and {_units(self.gpus, 'GPU')}" if self.gpus else "")
        return f"{counted(self.least, 'worker')} with {share}{inflected(self.least, '', ' each')}"


def nodes(ray: Any) -> list[dict[str, float]]:
    """What each node of a cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting(ray: Any, team: Team) -> int:
    """How many workers fit into the nodes of a cluster, if nobody else uses them."""
    return sum(map(team.fit_into, nodes(ray)))


def check_room(ray: Any, team: Team) -> None:
    """Raise where the least number of workers cannot begin now.

    Raises:
        ClusterError: they do not fit, or others use what they need.
    """
    begun = time.monotonic()
    while (free := team.fit_into(ray.available_resources())) < team.least or fitting(ray, team) < team.least:
        if fitting(ray, team) < team.least or time.monotonic() - begun > SETTLE:
            raise refusal(ray, team, free)
        time.sleep(0.2)


def refusal(ray: Any, team: Team, free: int) -> ClusterError:
    """Why the least number of workers cannot begin, when there is room for so many."""
    advice = "ask for fewer workers or less for each of them, or give the cluster time (wait)"
    fit = fitting(ray, team)
    if fit >= team.least:
        fits = inflected(team.least, "fits", "fit")
        return ClusterError(f"{team} {fits} into the cluster, but {free} beside what others do on it; {advice}")
    kinds = Counter(
        f"{_units(node.get('CPU', 0), 'CPU')} and {_units(node.get('GPU', 0), 'GPU')}" for node in nodes(ray)
    )
    room = ", ".join(f"{counted(count, 'node')} with {kind}" for kind, count in kinds.items()) or "no nodes"
    do = inflected(team.least, "does", "do")
    return ClusterError(f"{team} {do} not fit into the cluster, but {fit}: it has {room}; {advice}")


def _units(amount: float, unit: str) -> str:
    return f"{amount:g} {inflected(amount, unit)}"


@contextmanager
def ray_settings(address: str | None) -> Iterator[None]:
    """What Ray is told while it is imported and while it runs, and nobody else: no reports, the loopback address alone.

    Args:
        address: of the cluster; see :func:`connected`.
    """
    # Both are read when Ray is imported. Whatever the name of the second says, it decides on which address Ray listens.
    values = {"RAY_USAGE_STATS_ENABLED": "0"}
    if _meant(address) == LOCAL:
        values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with environment(values), log_level("ray", logging.ERROR):
        yield


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one, for the length of a block; where Ray is connected already, it stays so.

    Args:
        ray: the module.
        address: ``HOST:PORT`` or ``"auto"``; None is what ``RAY_ADDRESS`` says, else a cluster that is started here.

    Raises:
        ClusterError: it cannot be reached.
    """
    address = _meant(address)
    if address.startswith("ray://"):
        raise ClusterError(
            f"address {address!r} is for clients outside of a cluster; run this on one of its machines, which see the "
            "output, and give HOST:PORT or 'auto'"
        )
    if ray.is_initialized():
        yield
        return
    here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == LOCAL else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():
            # Where nobody listens, Ray itself would go on asking for many minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False, **here)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cannot reach a Ray cluster at {address!r}: {reason(str(error))}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _meant(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def reason(message: str) -> str:
    """The telling part of a message of Ray's, on one line."""
    text = printable(" ".join(message.split()))
    text = text.partition("Worker exit detail: ")[2] or text
    return shortened(text.partition(" Some common causes")[0], 300).rstrip(".")
