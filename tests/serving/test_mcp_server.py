"""The tools as the protocol's own client sees them, in this process and over the pipes of another one."""

import asyncio
import json
import logging
import os
import subprocess
import sys

import pytest
from serving import FakeEngine, FakeIndex

pytest.importorskip("mcp", reason="the extra 'mcp' is not installed")

from mcp import ClientSession
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from valuembed.serving.mcp_server import mcp_server
from valuembed.serving.mcp_tools import BackgroundModel

pytestmark = pytest.mark.slow


def ask(index, work):
    """What some work with a client gives."""

    async def run():
        async with Client(mcp_server(index, BackgroundModel(FakeEngine))) as client:
            return await work(client)

    return asyncio.run(run())


def test_tools_are_listed():
    tools = ask(FakeIndex(), lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["search", "read_passage", "embed"]
    assert all(tool.annotations.read_only_hint and not tool.annotations.open_world_hint for tool in tools)


def test_an_answer_is_words_and_data():
    found = ask(FakeIndex(), lambda client: client.call_tool("search", {"query": "a cat", "k": 1}))
    assert not found.is_error
    assert found.content[0].text.startswith("1 passage, best first:\n\n[1] ")
    assert len(found.structured_content["passages"]) == 1


def test_an_error_is_an_answer_too():
    found = ask(FakeIndex(), lambda client: client.call_tool("search", {"query": "a", "where": "stars > 3"}))
    assert (found.is_error, found.structured_content) == (True, None)
    assert found.content[0].text == "the filter 'stars > 3' cannot be applied; columns of the index: text (string)"


def test_nothing_of_a_call_is_logged(caplog):
    caplog.set_level(logging.INFO)
    index = FakeIndex()
    index.broken = RuntimeError("failed on a quokka")
    found = ask(index, lambda client: client.call_tool("read_passage", {"key": "quokka"}))
    assert (found.is_error, found.content[0].text) == (True, "the server failed; its log says where")
    assert "a tool failed: RuntimeError at" in caplog.text
    assert "quokka" not in caplog.text


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of a few sentences by the bundled model."""
    pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
    import valuembed
    from valuembed.search import build_index

    folder = tmp_path_factory.mktemp("mcp")
    (folder / "some.txt").write_text("The train was two hours late.\nA cat sleeps.\nShares fell.\n")
    valuembed.embed_file(valuembed.load("bundled"), folder / "some.txt", folder / "some.parquet")
    build_index(folder / "some.parquet", folder / "index", progress=False)
    return folder / "index"


@pytest.mark.process
class TestProcess:
    def test_a_client_over_pipes(self, index, tmp_path):
        command = ["-m", "valuembed", "mcp", "--index", str(index)]

        async def run(log):
            started = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
            async with stdio_client(started, errlog=log) as pipes, ClientSession(*pipes) as session:
                told = await session.initialize()
                assert (told.server_info.name, "search" in told.instructions) == ("valuembed", True)
                assert len((await session.list_tools()).tools) == 3
                found = await session.call_tool(
                    "search", {"query": "The train was two hours late, said the quokka.", "k": 1}
                )
                (hit,) = found.structured_content["passages"]
                around = await session.call_tool("read_passage", {"key": hit["key"]})
                vectors = await session.call_tool("embed", {"texts": ["a"], "dimensions": 4})
                return hit["text"], around.content[0].text, len(vectors.structured_content["vectors"][0])

        with open(tmp_path / "log", "w") as log:
            assert asyncio.run(run(log)) == (
                "The train was two hours late.",
                "some.parquet, row 0\nThe train was two hours late.\n\nsome.parquet, row 1\nA cat sleeps.",
                4,
            )
        said = (tmp_path / "log").read_text()
        assert "INFO: the model is loaded: bundled" in said
        assert "quokka" not in said

    def test_stdout_holds_the_protocol_alone(self, index):
        """Also while the model loads, and where a frame is none; it ends with stdin."""
        hello = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        }
        call = {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "search", "arguments": {"query": "quokka"}},
        }
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        sent = "".join(json.dumps(frame) + "\n" for frame in (hello, ready)) + "no frame of quokkas\n"
        child = subprocess.Popen(
            [sys.executable, "-m", "valuembed", "mcp", "--index", index],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with child:
            child.stdin.write(sent + json.dumps(call) + "\n")
            child.stdin.flush()
            frames = [json.loads(child.stdout.readline())]
            while frames[-1].get("id") != 2:
                frames.append(json.loads(child.stdout.readline()))
            child.stdin.close()
            rest, said = child.stdout.read(), child.stderr.read()
        assert (child.returncode, rest) == (0, "")
        assert frames[0]["result"]["serverInfo"]["name"] == "valuembed"
        assert len(frames[-1]["result"]["structuredContent"]["passages"]) == 3
        assert "quokka" not in said

    def test_a_client_that_leaves_while_the_model_loads(self, index):
        done = subprocess.run(
            [sys.executable, "-m", "valuembed", "mcp", "--index", index],
            input="",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "")

    def test_a_folder_without_an_index(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "valuembed", "mcp", "--index", tmp_path],
            input="",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert f"error: {tmp_path} holds no index; make one with" in " ".join(done.stderr.split())
