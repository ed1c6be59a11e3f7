"""What ``embed`` says of the work that it has done."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from valuembed._utils.text import counted, printable

if TYPE_CHECKING:
    from valuembed.corpus import CorpusSummary


def tell_job(output: Path, done: "CorpusSummary") -> None:
    """Print what came of a job on a folder."""
    precision = "" if done.precision == "float32" else f", {done.precision}"
    chunks = f" as {counted(done.vectors, 'chunk')}" if done.vectors != done.embedded else ""
    typer.echo(
        f"{output}: {done.embedded:,} of {counted(done.rows, 'row')} of {counted(done.inputs, 'input')} "
        f"embedded{chunks}, {done.width} wide{precision}, in {counted(done.shards, 'shard')}"
    )
    run = done.run
    typer.echo(
        f"this run: {counted(run.rows, 'row')} in {run.seconds:.1f} s ({pace(run.tokens, run.seconds)})"
        if run.rows
        else "this run: nothing was left to do"
    )
    if done.first_rejected:
        tell_rejected(output / "rejected.jsonl", done.rejected, str(done.first_rejected))
    if done.unfinished:
        typer.echo(f"unfinished inputs of earlier runs: {', '.join(done.unfinished)}")


def tell_rejected(path: Path, count: int, first: str) -> None:
    """Print how many rows were set aside, where they are listed, and why the first was."""
    rows = counted(count, "row was", "rows were")
    typer.echo(f"{path}: {rows} set aside, each with its reason; {printable(first)}")


def pace(tokens: int, seconds: float) -> str:
    """Tokens, and how many a second, in words."""
    return f"{counted(tokens, 'token')}, {tokens / seconds:,.0f} tokens/s" if tokens else "0 tokens, no tokens"
