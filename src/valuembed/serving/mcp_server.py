"""The tools of an index behind the Model Context Protocol, over stdin and stdout of a process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mcp.types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from valuembed._utils.version import __version__
from valuembed.errors import ValuembedError, trace_of
from valuembed.serving.jobs import Engine
from valuembed.serving.mcp_tools import AssistantTools, BackgroundModel
from valuembed.serving.stored_index import StoredIndex

if TYPE_CHECKING:
    from valuembed.models import ValueEncoder

logger = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Searches the user's own texts by meaning. Call search before you answer what these texts may answer, read_passage "
    "for what stands around a passage, and cite the places that they give."
)


def mcp_server(index: StoredIndex, model: BackgroundModel) -> Server[Any]:
    """A server of the protocol with the tools of an index.

    Args:
        index: what is searched, as :meth:`valuembed.search.LiveIndex.open` gives it.
        model: the one that made it, which may still be loading.
    """
    tools = AssistantTools(index, model)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        reads = types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    title=tool.title,
                    description=tool.description,
                    input_schema=tool.takes,
                    output_schema=tool.gives,
                    annotations=reads,
                )
                for tool in await tools.described()
            ]
        )

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        # An assistant corrects itself by what it is told in an answer; errors of the protocol it may never see.
        try:
            answer = await tools.call(params.name, params.arguments)
        except ValuembedError as error:
            return _failed(str(error))
        except Exception as error:
            logger.error("a tool failed: %s", trace_of(error))
            return _failed("the server failed; its log says where")
        return types.CallToolResult(content=[_text(answer.text)], structured_content=answer.data)

    server: Server[Any] = Server(
        "valuembed",
        title="valuembed",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    # It would report to whatever collector a process or its environment names.
    server.middleware.clear()
    return server


def serve_mcp(index: StoredIndex, load: Callable[[], ValueEncoder | Engine]) -> None:
    """Serve the tools of an index over stdin and stdout until stdin ends.

    stdout belongs to the protocol: while it runs, what anything else prints there goes to stderr. The model is loaded
    meanwhile, so that a client is answered at once, and the first call that needs it waits.

    Args:
        index: as in :func:`mcp_server`.
        load: what gives the model, called on another thread.
    """
    # Their messages may repeat what was sent.
    protocol = logging.getLogger("mcp")
    protocol.addHandler(logging.NullHandler())
    protocol.propagate = False
    # A thread waits for stdin, which no exception reaches.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(_serve(index, load))


async def _serve(index: StoredIndex, load: Callable[[], ValueEncoder | Engine]) -> None:
    async with stdio_server() as (reading, writing):
        server = mcp_server(index, BackgroundModel(load))
        await server.run(reading, writing, server.create_initialization_options())


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _failed(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[_text(message)], is_error=True)
