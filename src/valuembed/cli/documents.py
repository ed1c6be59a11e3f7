"""Folders of documents on the command line: which way a source is taken, and a store brought up to date."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from valuembed._utils.text import counted, inflected, printable
from valuembed.cli.embed_summary import pace
from valuembed.cli.framework import load_encoder
from valuembed.cli.options import BUNDLED, INPUT
from valuembed.cli.output import print_json
from valuembed.vectors import PassageStore, is_remote, recorded_job, recorded_options

if TYPE_CHECKING:
    from valuembed._utils.progress import Progress
    from valuembed.corpus.documents import DocumentsSummary

DOCUMENT_CHOICES = ("chunk", "precision", "dim")
"""Of the options of a corpus, those that documents have too."""

KEPT = "documents that are finished are kept, the same command goes on from there"
PURPOSE = "search"
"""What documents are embedded for, unless a method is named."""

LinesOption = typer.Option(
    "--lines",
    help="Take each line of a .txt file as a text, in folders too. By default a folder with documents in it (.txt, "
    ".md, .html, .pdf and others) is embedded as documents, cut into passages.",
    rich_help_panel=INPUT,
)


def are_documents(inputs: list[str], output: Path, lines: bool) -> bool:
    """Whether what is embedded into a folder are documents: as the folder was begun, else as the inputs are.

    Raises:
        BadParameter: it is asked for otherwise than the folder was begun, or documents come from several inputs.
    """
    from valuembed.corpus import MANIFEST, holds_passages
    from valuembed.corpus.documents import holds_documents

    if begun := holds_passages(output):
        if lines:
            raise typer.BadParameter(
                f"is for rows, and {output} was begun with documents; name another OUTPUT", param_hint="--lines"
            )
    elif lines or (output / MANIFEST).exists():
        return False
    if not begun and not any(holds_documents(given) for given in inputs if given != "-"):
        return False
    if len(inputs) > 1:
        raise typer.BadParameter(
            "documents are embedded from one folder, or one file, at a time; --lines takes each line of .txt files as "
            "a text",
            param_hint="INPUT",
        )
    return True


def check_for_documents(given: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing for documents.

    Raises:
        BadParameter: one is given.
    """
    if wrong := [name for name, value in given.items() if value and name not in DOCUMENT_CHOICES]:
        raise typer.BadParameter(
            "is for rows of files, and INPUT holds documents; --lines takes each line of .txt files as a text",
            param_hint=f"--{wrong[0].replace('_', '-')}",
        )


def update(
    store: PassageStore,
    folder: str,
    options: dict[str, Any],
    choices: Mapping[str, Any],
    progress: "bool | Callable[[Progress], object]",
    *,
    otherwise: str = "",
) -> "DocumentsSummary":
    """Bring a store up to date with a folder, and say beforehand what is done.

    Args:
        store: of passages.
        folder: of documents.
        options: of the model, those that were given.
        choices: of :data:`DOCUMENT_CHOICES`, those that were given.
        progress: see :func:`valuembed.corpus.documents.update_documents`.
        otherwise: what else could be done, for people.
    """
    from valuembed.corpus.documents import PASSAGE_TOKENS, check_documents, update_documents

    found, _ = check_documents(folder, store)
    options = _with_record(store, options)
    known = store.recorded()
    tokens = choices.get("chunk") or (known.settings.get("chunk") if known else None) or PASSAGE_TOKENS
    typer.echo(
        f"{printable(folder)}: {counted(len(found), 'document')}, in passages of at most {counted(tokens, 'token')}"
        f"{otherwise}",
        err=True,
    )
    encoder = load_encoder(options)
    try:
        return update_documents(encoder, folder, store, **choices, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(KEPT) from None


def _with_record(store: PassageStore, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the model with what the store was begun with, or with what is best for search."""
    known = store.recorded()
    if known is not None and known.settings:
        record = {"make": known.vector_spec.to_record(), "settings": known.settings}
        return recorded_job(record, store.address, options)
    if known is not None:
        return recorded_options(known.vector_spec, store.address, options)
    options = {"model": BUNDLED, **options}
    named = any(options.get(name) is not None for name in ("method", "layers", "template", "cleaning"))
    if named or _has_own_recipe(options):
        return options
    typer.echo(f"embedding --for {PURPOSE}, as documents are; --method or another --for chooses otherwise", err=True)
    return {**options, "method": PURPOSE}


def _has_own_recipe(options: Mapping[str, Any]) -> bool:
    """Whether a model was saved with a recipe, which is then the one that suits it."""
    from valuembed.backbone.checkpoints import HubOptions, locate, saved_config

    hub = {name: options[name] for name in HubOptions.names() if options.get(name) is not None}
    return saved_config(locate(options["model"], options=HubOptions(**hub))) is not None


def tell_update(address: str, done: "DocumentsSummary", rejected: Path | None, *, as_json: bool) -> None:
    """Print what came of an update."""
    if as_json:
        print_json(asdict(done))
        return
    precision = "" if done.precision == "float32" else f", {done.precision}"
    typer.echo(
        f"{address}: {counted(done.documents, 'document')} as {counted(done.passages, 'passage')}, {done.width} wide"
        f"{precision}"
    )
    what = ", ".join(
        f"{number:,} {name}"
        for name, number in (("new", done.added), ("changed", done.changed), ("removed", done.removed))
        if number
    )
    if not what:
        typer.echo(f"this run: nothing was left to do, in {done.seconds:.1f} s")
    else:
        same = f", {done.unchanged:,} as before" if done.unchanged else ""
        work = f"{counted(done.embedded, 'passage')} in {done.seconds:.1f} s ({pace(done.tokens, done.seconds)})"
        typer.echo(f"this run: {what}{same}; {work}")
    if done.first_rejected:
        where = f", listed in {rejected}" if rejected else ""
        files = f"{counted(done.rejected, 'file')} {inflected(done.rejected, 'was', 'were')} set aside{where}"
        typer.echo(f"{files}; the first: {printable(done.first_rejected)}")


def holds_embeddings(source: str) -> bool:
    """Whether a source of an index is one that ``embed`` wrote, or is to be read as one."""
    from valuembed.corpus import MANIFEST
    from valuembed.corpus.documents import has_vectors

    if is_remote(source) or not (path := Path(source)).exists():
        return True
    if not path.is_dir():
        return path.suffix.lower() == ".parquet"
    return (path / MANIFEST).exists() or any(map(has_vectors, _parquet_files(path)))


def _parquet_files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() == ".parquet" and path.is_file())
