"""Where a server listens, and what it tells a user to open."""

import errno
import socket

import pytest

from valuembed.errors import ServingError
from valuembed.serving.addresses import is_loopback, listen, url_of


def test_answers_are_not_held_back():
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1"),
        ("localhost", "http://localhost"),
        # A browser cannot open the address that means all of them.
        ("0.0.0.0", "http://127.0.0.1"),
    ],
)
def test_the_address_to_open(host, expected):
    with listen(host, 0) as sock:
        port = sock.getsockname()[1]
        assert port > 0
        assert url_of(host, sock) == f"{expected}:{port}"


@pytest.mark.parametrize(
    ("host", "bound", "expected"),
    [
        ("::1", "::1", "http://[::1]:80"),
        ("::", "::", "http://[::1]:80"),
        ("fd00::5", "fd00::5", "http://[fd00::5]:80"),
        ("machine.example", "192.0.2.7", "http://machine.example:80"),
    ],
)
def test_the_address_to_open_where_this_machine_may_have_none(host, bound, expected):
    class Listening:
        def getsockname(self):
            return (bound, 80, 0, 0) if ":" in bound else (bound, 80)

    assert url_of(host, Listening()) == expected


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServingError,
            match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; choose another port, or 0 for a "
            "free one$",
        ):
            listen("127.0.0.1", port)


def test_a_port_that_is_not_allowed(monkeypatch):
    def denied(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(
        ServingError, match=r"^cannot listen on 127\.0\.0\.1:80: Permission denied; ports below 1024 are for privileged"
    ):
        listen("127.0.0.1", 80)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70, "a..b", "nul\0"])
def test_a_host_that_is_not_this_machine(host):
    with pytest.raises(
        ServingError, match=r"^cannot listen on .*:80: .*; the host has to be an address of this machine"
    ):
        listen(host, 80)


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_port_that_is_none(port):
    with pytest.raises(
        ServingError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: no such port; ports are 1 to 65535"
    ):
        listen("127.0.0.1", port)


def test_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.1", "machine.example"]))
