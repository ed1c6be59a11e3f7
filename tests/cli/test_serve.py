"""The command ``serve``, and what it needs before a server runs: keys, a port, a model that works."""

import socket
import threading

import pytest
from fakes import FakeEncoder
from running import fails, run, succeeds
from serving import FakeEngine, until
from stored import write_embeddings

import valuembed.serving.server as server
from valuembed._utils import optional
from valuembed.cli import served_index
from valuembed.errors import InputError, MissingExtraError, ReadingError, ServingError
from valuembed.search.index import build_index
from valuembed.serving import addresses
from valuembed.serving.addresses import listen
from valuembed.serving.admission import Limits
from valuembed.serving.server import OpenServerWarning, Server, create_app, read_keys, serve


class Listener:
    def __init__(self, *at):
        self.at, self.closed = at, False

    def close(self):
        self.closed = True


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, in place of a running server."""
    found = {}
    monkeypatch.setattr(served_index, "load_model", lambda options: found.setdefault("options", options))
    monkeypatch.setattr(
        "valuembed.serving.listen", lambda host, port: found.setdefault("listened", Listener(host, port))
    )
    monkeypatch.setattr("valuembed.serving.serve", lambda encoder, **given: found.update(given))
    monkeypatch.delenv("VALUEMBED_API_KEY", raising=False)
    return found


@pytest.fixture
def never(monkeypatch):
    """Servers that return as soon as they would run; what they were given."""
    made = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: made.extend([self, *sockets]))
    yield made
    for sock in made[1::2]:
        sock.close()


def test_without_options_it_is_loopback_without_a_key(asked):
    succeeds("serve")
    assert asked.pop("options")["model"] == "bundled"
    # The port is tried before the model is loaded, and free again when the server wants it.
    tried = asked.pop("listened")
    assert (tried.at, tried.closed) == (("127.0.0.1", 8000), True)
    assert asked == {
        "index": None,
        "index_map": None,
        "host": "127.0.0.1",
        "port": 8000,
        "name": None,
        "keys": [],
        "limits": Limits(),
        "step_tokens": None,
        "docs": True,
        "cors_origins": (),
        "drain_seconds": 2.0,
    }


def test_every_option_arrives(asked, tmp_path):
    (tmp_path / "keys").write_text("one\n\n two \n")
    limits = {
        "max_body_bytes": 10,
        "max_texts": 2,
        "max_hits": 5,
        "max_requests": 3,
        "max_waiting_texts": 4,
        "max_waiting_bytes": 50,
        "answer_seconds": 6.5,
        "stuck_seconds": 7.5,
    }
    others = {"host": "0.0.0.0", "port": 9, "name": "mine", "step_tokens": 100, "drain_seconds": 0.5}
    words = [
        word for name, value in {**limits, **others}.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    succeeds(
        "serve",
        "--model",
        "some/model",
        "--method",
        "va",
        *words,
        "--api-key-file",
        tmp_path / "keys",
        "--no-docs",
        "--cors-origin",
        "https://a.b",
        "--cors-origin",
        "*",
    )
    options = asked.pop("options")
    assert asked.pop("listened").at == ("0.0.0.0", 9)
    assert (options["model"], options["method"]) == ("some/model", "va")
    more = {"index": None, "index_map": None, "docs": False, "cors_origins": ["https://a.b", "*"]}
    assert asked == {**others, **more, "keys": ["one", "two"], "limits": Limits(**limits)}


@pytest.fixture
def index(tmp_path):
    """An index that the bundled model is recorded to have made, and did not."""
    pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
    write_embeddings(tmp_path / "some.parquet", ["A cat sleeps.", "Shares fell."])
    build_index(tmp_path / "some.parquet", tmp_path / "index", progress=False)
    return tmp_path / "index"


class TestIndex:
    def test_the_model_is_the_one_that_it_records(self, asked, index, monkeypatch):
        made = FakeEncoder()
        monkeypatch.setattr(served_index, "load_model", lambda options: asked.setdefault("options", options) and made)
        monkeypatch.setattr("valuembed.serving.serve", lambda encoder, **given: asked.update(given, encoder=encoder))
        succeeds("serve", "--index", index, "--device", "cpu")
        assert asked["encoder"] is made
        assert (asked["index"].address, asked["index"].width) == (str(index), 16)
        options = asked["options"]
        assert (options["model"], options["method"].layers, options["device"]) == ("bundled", (2, 3), "cpu")

    def test_a_model_of_another_make_is_said_before_it_is_served(self, asked, index, monkeypatch):
        monkeypatch.setattr(served_index, "load_model", lambda options: FakeEncoder(name="other", shift=9.0))
        said = fails("serve", "--index", index, "--model", "other")
        assert said.startswith(
            f"error: {index} was made by model 'fake', method 'aligned_wva', layers [2, 3], width 16"
        )
        assert "other weights or prompts: the same sentence has cosine" in said
        assert "host" not in asked

    def test_a_folder_without_one(self, asked, tmp_path):
        assert fails("serve", "--index", tmp_path) == (
            f"error: {tmp_path} holds no index; make one with: valuembed index SOURCE -o {tmp_path}"
        )
        assert "options" not in asked


def test_no_option_takes_a_key(asked):
    shown = succeeds("serve", "--help")
    assert "--api-key-file" in shown
    assert "--api-key " not in shown
    assert run("serve", "--api-key", "secret").exit_code == 2


def test_wrong_limits_are_one_line(asked):
    assert fails("serve", "--max-texts", 10, "--max-waiting-texts", 5) == (
        "error: max_texts=10 is above max_waiting_texts=5: such a request could never be taken on"
    )
    assert asked == {}


def test_a_wrong_origin_is_one_line(asked):
    assert fails("serve", "--cors-origin", "https://a.b/").startswith("error: CORS origin 'https://a.b/' has to be a")
    assert asked == {}


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(served_index, "load_model", lambda options: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fails("serve", "--port", port) == (
            f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another port, or 0 for a free "
            "one"
        )


@pytest.mark.parametrize("docs", [True, False])
@pytest.mark.parametrize("playground", [True, False])
def test_a_server_that_is_ready_says_where_it_is(caplog, docs, playground):
    engine = FakeEngine()
    if playground:
        engine.playground = object()
    caplog.set_level("INFO", "valuembed")
    app = create_app(engine, docs=docs)
    with listen("127.0.0.1", 0) as listener:
        url = addresses.url_of("127.0.0.1", listener)
        running = Server(app, drain_seconds=0, url=url)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        until(lambda: f"serving fake at {url}/v1" in caplog.messages)
        running.should_exit = True
        thread.join(20)
    expected = [f"serving fake at {url}/v1"]
    expected += [f"a page to try it with: {url}/"] if playground else []
    expected += [f"what can be asked of it: {url}/docs"] if docs else []
    assert [message for message in caplog.messages if url in message] == expected


def test_a_missing_extra_is_one_line(asked, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(optional, "import_module", missing)
    assert fails("serve") == f"error: fastapi is not installed; run: {optional.install_line('serve')}"
    assert issubclass(MissingExtraError, ImportError)


def test_keys_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VALUEMBED_API_KEY", " from-the-environment ")
    assert read_keys() == ["from-the-environment"]
    file = tmp_path / "keys"
    file.write_text("a\n  b\n\n")
    assert read_keys(file) == ["a", "b"]
    monkeypatch.setenv("VALUEMBED_API_KEY", "")
    assert read_keys() == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "cannot be read: it is not UTF-8"),
        (b" \n\n", "holds no key; write one a line"),
    ],
)
def test_a_key_file_without_a_key_is_an_error(tmp_path, content, reason):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"^key file '{file}' {reason}$"):
        read_keys(file)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(never, host, monkeypatch):
    # Not every machine has IPv6.
    monkeypatch.setattr(server, "listen", lambda host, port: listen("127.0.0.1", port))
    serve(FakeEngine(), host=host, port=0)
    assert len(never) == 2


def test_other_addresses_without_a_key_are_warned_of(never):
    with pytest.warns(
        OpenServerWarning, match=r"^0\.0\.0\.0 can be reached from other machines, and no key is asked for"
    ):
        serve(FakeEngine(), host="0.0.0.0", port=0)
    serve(FakeEngine(), host="0.0.0.0", port=0, keys=["key"])
    assert len(never) == 4


def test_a_port_that_is_taken_is_an_error(never):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServingError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; choose"
        ):
            serve(FakeEngine(), port=port)
    with pytest.raises(ServingError, match=r"^cannot listen on no\.such\.host\.invalid:80: "):
        serve(FakeEngine(), host="no.such.host.invalid", port=80, keys=["key"])
    assert never == []


def test_a_model_that_cannot_embed_is_found_before_it_is_served(never):
    class Broken:
        def encode(self, texts, *, show_progress_bar):
            raise ReadingError("the embedding of 1 text is not finite")

    with pytest.raises(ReadingError, match="not finite"):
        serve(Broken(), port=0)
    assert never == []
