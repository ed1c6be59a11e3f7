"""Texts on one line, without what could steer a terminal; numbers with their nouns."""

from __future__ import annotations

import re
from pathlib import Path

import valuembed
from valuembed._utils.text import counted, decimals, inflected, printable, shortened


def test_controls_become_visible():
    assert printable("a\nb\tc") == "a\u21b5b\u21e5c"
    assert printable("\x1b[31m\u202e\x00") == "\ufffd[31m\ufffd\ufffd"


def test_spelling_is_kept():
    text = "caf\u00e9 \u4e2d \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f467"
    assert printable(text) == text


def test_long_texts_end_in_an_ellipsis():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde\u2026"


def test_numbers_and_their_nouns():
    assert [counted(count, "row") for count in (0, 1, 2, 2048)] == ["0 rows", "1 row", "2 rows", "2,048 rows"]
    assert counted(1, "query", "queries") == "1 query"
    assert counted(3, "query", "queries") == "3 queries"
    assert counted(1, "row was", "rows were") == "1 row was"
    assert (inflected(1, "is", "are"), inflected(0, "is", "are"), inflected(0.5, "CPU")) == ("is", "are", "CPUs")


def test_decimals_that_tell_apart():
    # The first digit of the spread, and one more.
    assert [decimals(0.5, 0.5 + spread) for spread in (0.4, 0.09, 0.006, 0.00007, 1e-9)] == [2, 3, 4, 5, 5]
    assert (decimals(0.5, 0.5), decimals(0.5, float("nan")), decimals(-1, 100)) == (2, 2, 2)


ALWAYS_SEVERAL = {
    # Numbers that are refused, or do not come here, where they are 1; and an address, which is no number.
    "backbone/adapter_embeddings.py: size:,} rows",
    "backbone/adapter_embeddings.py: trained_on:,} rows",
    "backbone/adapters.py: len(names)} adapters",
    "backbone/checkpoints/location.py: len(paths)} files",
    "models/calibration.py: b} texts",
    "models/calibration.py: len(x)} vectors",
    "backbone/checkpoints/calibration_record.py: self.texts:,} texts",
    "corpus/batches.py: len(texts):,} texts",
    "corpus/job.py: len(empty)} inputs",
    "training/finetune.py: width} steps",
    "search/ingest.py: self.files.address} vectors",
    "evaluation/local_tasks.py: len(data.labels)} texts",
    "evaluation/local_tasks.py: len(data.texts)} texts",
    "evaluation/local_tasks.py: len(scored.texts)} texts",
    "evaluation/local_tasks.py: len(set(data.labels))} classes",
    "evaluation/local_tasks.py: len(set(scored.labels))} classes",
    "data/text_rows.py: rows:,} rows",
    "backbone/checkpoints/sentence_transformers_folder.py: self.max_tokens} tokens",
    "backbone/tracing.py: shared} layers",
    "data/labelled.py: len(scores)} scores",
    "tokenization/vocabulary.py: rows:,} rows",
}


def test_no_message_counts_by_hand():
    """A number that is worked out stands before its noun through ``counted``, or is never 1."""
    nouns = "rows texts inputs shards files tokens layers heads scores documents segments chunks weights classes"
    nouns += " positions workers nodes requests vectors candidates queries adapters steps"
    several = r"\{((?:len\([^{}]*\)|[a-z_.]+)(?::,)?)\} (?:value |query |text )?(" + "|".join(nouns.split()) + r")\b"
    found = set()
    source = Path(valuembed.__file__).parent
    for path in sorted(source.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if 'f"' in line:
                found |= {
                    f"{path.relative_to(source).as_posix()}: {number}}} {noun}"
                    for number, noun in re.findall(several, line)
                }
    assert found - ALWAYS_SEVERAL == set(), "write counted(number, noun) of _utils/text.py"
