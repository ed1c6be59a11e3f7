"""The command ``mcp``: which index and which model are served; the rest is in serving/test_mcp_server.py."""

import pytest
from fakes import FakeEncoder
from running import fails, succeeds
from stored import write_embeddings

from valuembed._utils import optional
from valuembed.cli import served_index
from valuembed.errors import InputError
from valuembed.search.index import build_index

pytest.importorskip("mcp", reason="the extra 'mcp' is not installed")
pytest.importorskip("lancedb", reason="the extra 'store' is not installed")


@pytest.fixture
def index(tmp_path):
    write_embeddings(tmp_path / "some.parquet", ["A cat sleeps.", "Shares fell."])
    build_index(tmp_path / "some.parquet", tmp_path / "index", progress=False)
    return tmp_path / "index"


@pytest.fixture
def served(monkeypatch):
    """What is served, in place of a server."""
    found = {}
    monkeypatch.setattr("valuembed.serving.serve_mcp", lambda index, load: found.update(index=index, load=load))
    return found


def test_the_model_is_the_one_that_the_index_records(served, index, monkeypatch):
    asked, made = [], FakeEncoder()
    monkeypatch.setattr(served_index, "load_model", lambda options: asked.append(options) or made)
    assert succeeds("mcp", "--index", index) == "", "stdout is the protocol's"
    assert served["index"].address == str(index)
    # Nothing is loaded before the server runs.
    assert asked == []
    assert served["load"]() is made
    assert (asked[0]["model"], asked[0]["method"].layers) == ("bundled", (2, 3))


def test_a_model_of_another_make(served, index, monkeypatch):
    monkeypatch.setattr(served_index, "load_model", lambda options: FakeEncoder(shift=9.0))
    succeeds("mcp", "--index", index)
    with pytest.raises(InputError, match="other weights or prompts: the same sentence has cosine"):
        served["load"]()


def test_a_folder_without_an_index(served, tmp_path):
    assert fails("mcp", "--index", tmp_path) == (
        f"error: {tmp_path} holds no index; make one with: valuembed index SOURCE -o {tmp_path}"
    )
    assert served == {}


def test_a_missing_extra_is_one_line(served, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(optional, "import_module", missing)
    assert fails("mcp", "--index", "x") == f"error: mcp is not installed; run: {optional.install_line('mcp')}"
