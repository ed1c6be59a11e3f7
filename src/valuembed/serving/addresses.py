"""Where a server listens: a socket, and addresses to open in a browser."""

from __future__ import annotations

import errno
import ipaddress
import socket

from valuembed.errors import ServingError

BACKLOG = 2048
"""Connections that wait to be accepted."""

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all of a machine's, and one of those that this machine itself can ask."""

ADVICE = {
    errno.EADDRINUSE: "choose another port, or 0 for a free one",
    errno.EACCES: "ports below 1024 are for privileged users; choose another port",
    errno.EADDRNOTAVAIL: "the host has to be an address of this machine, such as 127.0.0.1 or 0.0.0.0",
}
"""What to do about an error of the system."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: a name or an address of this machine.
        port: 0 picks a free one.

    Raises:
        ServingError: the port is taken or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        # The system would take it for another port.
        raise _refused(host, port, "no such port", "ports are 1 to 65535, and 0 picks a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol by name: asyncio switches Nagle's algorithm, which costs 40 ms an answer, off for TCP alone.
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except socket.gaierror as error:
        raise _refused(host, port, str(error.strerror), ADVICE[errno.EADDRNOTAVAIL]) from error
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "")
        raise _refused(host, port, str(error.strerror or error), advice) from error
    except ValueError as error:
        raise _refused(host, port, "no name of a host", ADVICE[errno.EADDRNOTAVAIL]) from error
    return sock


def url_of(host: str, sock: socket.socket) -> str:
    """The address of a listening socket, for a program on this machine: ``http://HOST:PORT``.

    Args:
        host: as it was given to :func:`listen`.
        sock: what that returned.
    """
    bound, port = sock.getsockname()[:2]
    return f"http://{_in_url(ANYWHERE.get(bound, host))}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refused(host: str, port: int, reason: str, advice: str) -> ServingError:
    return ServingError(f"cannot listen on {_in_url(host)}:{port}: {reason}" + (f"; {advice}" if advice else ""))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
