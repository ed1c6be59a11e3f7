"""The command ``serve``: a model, and perhaps an index, behind HTTP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed._utils.optional import require
from valuembed.cli.framework import command
from valuembed.cli.served_index import load_with_index, map_of

SERVER = "Server"
LIMITS = "Limits"


def _limit(help: str, metavar: str = "N", **more: Any) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel=LIMITS, **more)


@command(
    recorded="",
    examples=(
        "valuembed serve --port 8000",
        "valuembed serve --method va --host 0.0.0.0 --name my-model",
    ),
)
def serve(
    options: dict[str, Any],
    index: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX",
            help="The index that 'valuembed index' made, or its address, to be searched at /v1/search. The model and "
            "the recipe are then those that it records, unless they are given.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on. With any other than this machine's own, the server can be reached from "
            "elsewhere.",
            rich_help_panel=SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="N", help="The port to listen on; 0 picks a free one.", rich_help_panel=SERVER
        ),
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(
            help="What clients call the model. By default it is the model's own name.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file with the keys that clients have to send, one a line. By default the key in "
            "$VALUEMBED_API_KEY is taken, if there is one.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    docs: Annotated[
        bool,
        typer.Option(
            "--docs/--no-docs", help="Whether /docs and /openapi.json describe the API.", rich_help_panel=SERVER
        ),
    ] = True,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may call the server from a browser, such as https://app.example.com; * allows "
            "every site. It can be given several times; by default no site may.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to go on serving after being told to end, while /ready says no.",
            rich_help_panel=SERVER,
        ),
    ] = 2.0,
    step_tokens: Annotated[
        int | None,
        _limit(
            "How many tokens are computed in one step. The default is 2048 on a CPU and 8192 on a GPU.",
            min=1,
            show_default=False,
        ),
    ] = None,
    max_body_bytes: Annotated[int, _limit("How many bytes the body of one request may have.", min=1)] = 8_000_000,
    max_texts: Annotated[int, _limit("How many texts one request may have.", min=1)] = 2048,
    max_hits: Annotated[int, _limit("How many rows of an index one search may ask for.", min=1)] = 100,
    max_requests: Annotated[int, _limit("How many requests may be in the server at once.", min=1)] = 1024,
    max_waiting_texts: Annotated[
        int, _limit("How many texts all requests in the server may have together.", min=1)
    ] = 8192,
    max_waiting_bytes: Annotated[
        int, _limit("How many bytes all requests in the server may have together.", min=1)
    ] = 64_000_000,
    answer_seconds: Annotated[
        float, _limit("How long an answer may take before it is given up.", "SECONDS", min=1)
    ] = 300.0,
    stuck_seconds: Annotated[
        float, _limit("How long one step may take before /ready says no.", "SECONDS", min=1)
    ] = 120.0,
) -> None:
    """Serve a model behind the embeddings APIs of OpenAI, Ollama and TEI, until Ctrl-C or SIGTERM.

    Keys are never an argument: others on the machine could read it.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve")
    from valuembed.serving import Limits, cross_origin, listen, read_keys, serve as run

    keys = read_keys(api_key_file)
    limits = Limits(
        max_body_bytes=max_body_bytes,
        max_texts=max_texts,
        max_hits=max_hits,
        max_requests=max_requests,
        max_waiting_texts=max_waiting_texts,
        max_waiting_bytes=max_waiting_bytes,
        answer_seconds=answer_seconds,
        stuck_seconds=stuck_seconds,
    )
    cross_origin(cors_origin or ())
    # A port that is taken is said now, and not after a model has been loaded.
    listen(host, port).close()
    live, model = load_with_index(index, options)
    run(
        model,
        index=live,
        index_map=map_of(live),
        host=host,
        port=port,
        name=name,
        keys=keys,
        limits=limits,
        step_tokens=step_tokens,
        docs=docs,
        cors_origins=cors_origin or (),
        drain_seconds=drain_seconds,
    )
