"""A job on a corpus: its output folder, the settings that every run on it shares, and the inputs it is made of.

The folder's ``manifest.json`` holds them. The first run makes it, and every other, on whatever machine, compares itself
with it: shards of other settings never end up beside each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valuembed._utils.atomic import fresh_name, replace_text
from valuembed._utils.locks import Lock
from valuembed._utils.text import counted
from valuembed._utils.version import __version__, versions
from valuembed.data import DEFAULT_TEXT_COLUMN, Source, State, fingerprint_file
from valuembed.errors import InputError, OutputError
from valuembed.vectors import LOOKED_AT, Encoder, KeptColumns, VectorSpec, check_further, find_columns

MANIFEST = "manifest.json"
WORK = ".work"
"""Folder inside the output for locks and for what is not finished. A reader of tables passes over such a name."""

FORMAT = 1
DOCUMENTS_KIND = "documents"
"""Stands in the manifest of a folder that holds passages of documents (see :mod:`valuembed.corpus.documents`)."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pyarrow")
SAME_MODEL_COSINE = 0.999
"""Vectors of one job come from one set of weights: between machines, one in the same precision stays above this."""


@dataclass(frozen=True)
class Settings:
    """What decides the content of the shards beside the vectors' make. Other settings are another job.

    Attributes:
        text_column, id_column: as :func:`valuembed.data.read_rows` takes them.
        chunk: tokens of a chunk, None where texts are not cut.
        overlap: tokens that two chunks share.
        rows_per_shard: rows of an input in each of its shards but the last.
        dtype: of the weights.
        max_tokens: the longest sequence that is fed.
        late: whether a text is run as a whole for all its chunks.
    """

    text_column: str | None
    id_column: str | None
    chunk: int | None
    overlap: int
    rows_per_shard: int
    dtype: str
    max_tokens: int | None
    late: bool = False

    @classmethod
    def of(cls, model: Encoder, **choices: Any) -> Settings:
        """The settings of a run with a model."""
        return cls(**choices, dtype=model.compute_dtype, max_tokens=model.max_seq_length)


@dataclass(frozen=True)
class Job:
    """One run's view of a job. It is plain data, and may be sent to other processes.

    Attributes:
        folder: the output.
        vector_spec: what makes the vectors, and how they are stored.
        settings: see there.
        sources: the inputs of this run.
        states: what each of them was when the run began, by name.
        kept: columns of the inputs that are kept beside the vectors, in all shards alike.
    """

    folder: Path
    vector_spec: VectorSpec
    settings: Settings
    sources: tuple[Source, ...]
    states: Mapping[str, State]
    kept: KeptColumns

    @property
    def work(self) -> Path:
        """The folder for locks and for what is not finished."""
        return self.folder / WORK


def check_folder(output: str | os.PathLike[str]) -> Path:
    """Raise where a job cannot have its output, or return the path of its folder, which need not be there.

    Raises:
        OutputError: it is a file, holds something else, or cannot be written into.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {folder} is a file; name a folder, or one file that ends in .parquet")
    kinds = (".csv", ".json", ".jsonl", ".txt", ".npy", ".npz", ".arrow", ".feather")
    if folder.suffix.lower() in kinds and not folder.exists():
        raise OutputError(
            f"output {folder} has the extension {folder.suffix!r}; name a folder, or one file that ends in .parquet"
        )
    if not folder.exists():
        return folder
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"output {folder}: the folder is not writable")
    inside = set(os.listdir(folder)) - {WORK}
    if inside and MANIFEST not in inside:
        raise OutputError(f"output {folder} holds files but no {MANIFEST}, so it is no job's; name another folder")
    return folder


def holds_passages(folder: Path) -> bool:
    """Whether a folder was begun with documents; a folder without a manifest, or with a damaged one, was not."""
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes()).get("kind") == DOCUMENTS_KIND)
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a job's manifest records as plain data, or None where there is none.

    Returns:
        ``make`` (see :meth:`VectorSpec.from_record`), ``settings`` (see :class:`Settings`), ``inputs`` (a list of
        ``name``, ``size``, ``modified``, ``digest``), ``versions`` of the run that began the job, ``kept`` (see
        :meth:`valuembed.vectors.KeptColumns.from_record`; absent where nothing is kept), and ``complete``: None,
        or the counts of a run that found everything done.

    Raises:
        OutputError: it cannot be read, is damaged, or of another version's form.
    """
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_bytes())
        form = record["format"]
        if record.get("kind") == DOCUMENTS_KIND:
            raise OutputError(
                f"output {folder} was begun with documents, which are cut into passages; name another folder for texts "
                "that are rows of files"
            )
        if form == FORMAT:
            VectorSpec.from_record(record["make"])
            Settings(**record["settings"])
            _states(record)
            _kept(record)
            return dict(record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error!r}); put it back, or name another folder") from error
    raise OutputError(f"{path} has the form {form!r}, which this version ({__version__}) does not know")


def _states(record: Mapping[str, Any]) -> dict[str, State]:
    return {entry["name"]: State(entry["size"], entry["modified"], entry["digest"]) for entry in record["inputs"]}


def _kept(record: Mapping[str, Any]) -> KeptColumns:
    return KeptColumns.from_record(record["kept"]) if record.get("kept") else KeptColumns.none()


def recorded_sources(record: Mapping[str, Any]) -> list[Source]:
    """Every input that a manifest records, of all runs."""
    return [Source.named(entry["name"]) for entry in record["inputs"]]


def open_job(
    folder: Path,
    vector_spec: VectorSpec,
    settings: Settings,
    sources: Sequence[Source],
    keep: Sequence[str] | None = None,
) -> Job:
    """Begin a job, or join it: make its manifest, or compare with it, and enter inputs that are new.

    Args:
        folder, vector_spec, settings, sources: of the job.
        keep: columns of the inputs to keep; None is all that the inputs of the run that begins the job have.

    Raises:
        OutputError: the job has other settings, each of which is named; or the folder cannot be used.
        InputError: an input is not what it was when shards were made of it, or is one of the job's under a new name.
    """
    check_folder(folder)
    work = folder / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    with Lock(work / "job.lock"):
        record = read_manifest(folder)
        if record is not None:
            check_settings(folder, record, vector_spec, settings)
        known = _states(record) if record else {}
        new_sources = [source for source in sources if source.name not in known]
        kept = _kept_columns(folder, record, settings, new_sources, keep)
        states = {source.name: fingerprint_file(source, known.get(source.name)) for source in sources}
        _check_inputs(folder, known, states, sources)
        if record is None or any(known.get(name) != state for name, state in states.items()):
            new = any(name not in known or not known[name].same_content(state) for name, state in states.items())
            begun = record or _begin(vector_spec, settings, kept)
            _write(folder, begun, known | states, None if new else (record or {}).get("complete"))
    return Job(folder, vector_spec, settings, tuple(sources), states, kept)


def _kept_columns(
    folder: Path,
    record: Mapping[str, Any] | None,
    settings: Settings,
    sources: Sequence[Source],
    keep: Sequence[str] | None,
) -> KeptColumns:
    """The columns that a job keeps: those that its first run settled on.

    Args:
        folder, record, settings, keep: of the job.
        sources: the inputs that the job does not know.
    """
    paths = [source.path for source in sources]
    if record is None:
        return find_columns(paths, settings.text_column, settings.id_column, keep, most_bytes=LOOKED_AT)
    kept = _kept(record)
    own = (settings.text_column or DEFAULT_TEXT_COLUMN, settings.id_column)
    if keep is not None and {name for name in keep if name not in own} != set(kept.names):
        raise OutputError(
            f"output {folder} was begun with other settings (there against here): keep {list(kept.names)} against "
            f"{list(keep)}; give the same or leave it out, or name another folder"
        )
    if keep is None:
        check_further(kept, paths, folder, settings.text_column, settings.id_column)
    return kept


def note_complete(job: Job, counts: Mapping[str, int]) -> None:
    """Record that every input of the job is done, and what came of it.

    Raises:
        OutputError: it cannot be written.
    """
    with Lock(job.work / "job.lock"):
        record = read_manifest(job.folder)
        if record is not None and record["complete"] != counts:
            _write(job.folder, record, _states(record), counts)


def _begin(vector_spec: VectorSpec, settings: Settings, kept: KeptColumns) -> dict[str, Any]:
    """What all runs of a job share, as plain data."""
    shared = {"make": vector_spec.to_record(), "settings": asdict(settings), "versions": versions(*PACKAGES)}
    return {**shared, "kept": kept.to_record()} if kept.names else shared


def _write(
    folder: Path,
    record: Mapping[str, Any],
    states: Mapping[str, State],
    complete: Mapping[str, int] | None,
) -> None:
    content = {
        "format": FORMAT,
        "complete": complete,
        **{key: record[key] for key in ("make", "settings", "versions", "kept") if key in record},
        "inputs": [{"name": name, **asdict(state)} for name, state in states.items()],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    replace_text(folder / MANIFEST, f"{text}\n", fresh_name(folder / WORK, MANIFEST))


def check_settings(folder: Path, record: Mapping[str, Any], vector_spec: VectorSpec, settings: Settings) -> None:
    """Raise where a manifest records another job than that of a model with its settings.

    Raises:
        OutputError: with every difference.
    """
    recorded = asdict(Settings(**record["settings"]))
    found = VectorSpec.from_record(record["make"]).differences(vector_spec, SAME_MODEL_COSINE)
    now = asdict(settings)
    found += [f"{name} {recorded[name]!r} against {now[name]!r}" for name in now if recorded[name] != now[name]]
    if found:
        raise OutputError(
            f"output {folder} was begun with other settings (there against here): {'; '.join(found)}; give the same, "
            "or name another folder"
        )


def _check_inputs(
    folder: Path, known: Mapping[str, State], states: Mapping[str, State], sources: Sequence[Source]
) -> None:
    changed = []
    for source in sources:
        was, now = known.get(source.name), states[source.name]
        if was and not was.same_content(now) and _has_shards(folder, source):
            size = (
                f"{counted(was.size, 'byte')} then, {now.size:,} now" if was.size != now.size else "of the same length"
            )
            changed.append(f"{source.name} ({size}; its shards are {source.key}-*.parquet)")
    if changed:
        raise InputError(
            f"{len(changed)} of the inputs of {folder} changed since shards were made of them: {'; '.join(changed)}; "
            "put the old content back, or remove these shards to have them made anew"
        )
    # An empty file is like any other empty file.
    absent = {state.digest: Source.named(name) for name, state in known.items() if name not in states and state.size}
    for name, state in states.items():
        twin = absent.get(state.digest)
        if name not in known and twin and _has_shards(folder, twin):
            raise InputError(
                f"input {name} holds what {twin.name} held when it was embedded into {folder}, and would be embedded "
                f"twice; name it {twin.name} (inputs are called what they are given as), or remove its old shards, "
                f"{twin.key}-*.parquet"
            )


def _has_shards(folder: Path, source: Source) -> bool:
    return any(folder.glob(f"{source.key}-*.parquet"))
