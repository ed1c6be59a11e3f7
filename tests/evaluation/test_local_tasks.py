"""How local tasks are named, told apart and refused; their scores are tested next door."""

import hashlib
import json
import subprocess
import sys

import pytest
from local_sets import DOCS, QRELS, QUERIES, STS, STS_ENCODER, Lookup, mteb, no_network, run  # noqa: F401

from valuembed.errors import InputError, MissingExtraError
from valuembed.evaluation.local_tasks import (
    FORMS,
    classification_task,
    kind,
    parse_task,
    retrieval_task,
    sts_task,
    title,
)


@pytest.fixture
def write(tmp_path):
    def to_file(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


class TestIdentity:
    def test_says_what_it_is(self, write):
        path = write("My pairs (v2).dev.jsonl", STS)
        task = sts_task(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert task.metadata.name == f"My_pairs_v2_.dev-sts-{digest[:8]}"
        assert task.metadata.revision == digest
        assert task.eval_splits == ["dev"]
        assert task.metadata.description == (
            "4 pairs of sentences with a similarity; from My pairs (v2).dev.jsonl, split dev"
        )
        assert (kind(task), title(task)) == ("sts", "My pairs (v2).dev")
        assert str(path.parent) not in task.metadata.model_dump_json()

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (("Cranfield.docs", "Cranfield.queries", "Cranfield.qrels"), "Cranfield"),
            (("my-set_docs", "my-set_queries", "my-set_qrels"), "my-set"),
            (("d1", "d2", "d3"), "FOLDER"),
        ],
    )
    def test_files_have_one_title(self, write, tmp_path, names, expected):
        files = [write(f"{name}.jsonl", rows) for name, rows in zip(names, (DOCS, QUERIES, QRELS), strict=True)]
        assert title(retrieval_task(*files)) == expected.replace("FOLDER", tmp_path.name)

    def test_files_of_several_folders(self, write):
        train, test = ([{"text": f"{n} {m}", "label": n} for n in (0, 1)] for m in (0, 1))
        assert title(classification_task(write("a/x.jsonl", train), write("b/y.jsonl", test))) == "x+y"
        assert title(classification_task(write("a/x.jsonl", train), write("b/x.jsonl", test))) == "x"

    def test_a_changed_file_never_shares_a_result(self, write, tmp_path):
        cache = mteb.ResultCache(tmp_path / "cache")
        encoder = Lookup(STS_ENCODER)
        path = write("pairs.jsonl", STS)
        before = sts_task(path)
        assert run(before, encoder, cache)["main_score"] == pytest.approx(0.8)
        assert len(encoder.calls) == 2
        assert run(sts_task(path), encoder, cache)["main_score"] == pytest.approx(0.8)
        assert len(encoder.calls) == 2, "an unchanged file is not computed again"
        turned = [{**row, "score": -row["score"]} for row in STS]
        for other in (write("pairs.jsonl", turned), write("elsewhere/pairs.jsonl", turned[:3])):
            task = sts_task(other)
            assert task.metadata.revision != before.metadata.revision
            # Three of the pairs, ranks by cosine 3 2 1, by score 1 3 2: rho = 1 - 6 * (4 + 1 + 1) / 24 = -0.5
            expected = -0.8 if other == path else -0.5
            assert run(task, encoder, cache)["main_score"] == pytest.approx(expected)
        assert len(encoder.calls) == 6

    def test_mtebs_cache_alone_would_share_it(self, write, tmp_path):
        # The reason for the digits in the name. If this fails, mteb looks at the revision and the name can do without.
        cache = mteb.ResultCache(tmp_path / "cache")
        task = sts_task(write("pairs.jsonl", STS))
        run(task, Lookup(STS_ENCODER), cache)
        other = sts_task(write("pairs.jsonl", [{**row, "score": -row["score"]} for row in STS]))
        other.metadata.name = task.metadata.name
        assert run(other, Lookup(STS_ENCODER), cache)["main_score"] == pytest.approx(0.8)

    def test_unloaded_data_is_loaded_again(self, write):
        task = sts_task(write("pairs.jsonl", STS))
        task.unload_data()
        assert run(task, Lookup(STS_ENCODER))["main_score"] == pytest.approx(0.8)

    def test_a_split_called_default_is_no_trap(self, write):
        task = sts_task(write("pairs.jsonl", [{**row, "split": "default"} for row in STS]))
        assert run(task, Lookup(STS_ENCODER))["main_score"] == pytest.approx(0.8)
        assert task.eval_splits == ["all"]


class TestParse:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("sts:", "task 'sts:': expected sts:FILE; file names given: 0"),
            ("retrieval:a,b", "expected retrieval:DOCS,QUERIES,QRELS; file names given: 2"),
            ("retrieval:a,,b", "expected retrieval:DOCS,QUERIES,QRELS; file names given: 2"),
            ("classification:a,b,c", "expected classification:TRAIN,TEST; file names given: 3"),
            ("stss:a.jsonl", "task 'stss:a.jsonl': unknown kind 'stss'; legal: sts:FILE, classification:TRAIN,TEST, "),
            ("sts:none.jsonl", "cannot read none.jsonl: No such file"),
            ("sts:a,b.jsonl", "cannot read a,b.jsonl: No such file"),
        ],
    )
    def test_refuses(self, spec, message):
        with pytest.raises(InputError) as raised:
            parse_task(spec)
        assert message in str(raised.value)

    def test_forms_are_six_kinds(self):
        assert [form.partition(":")[0] for form in FORMS] == [
            *("sts", "classification", "clustering", "retrieval", "reranking", "pairs")
        ]

    def test_takes_the_name_of_an_mteb_task(self):
        task = parse_task("STS12")
        assert (task.metadata.name, kind(task), title(task)) == ("STS12", "sts", "STS12")
        kinds = {"Banking77Classification.v2": "classification", "TwentyNewsgroupsClustering.v2": "clustering"}
        kinds |= {"SCIDOCS": "retrieval", "AskUbuntuDupQuestions": "reranking", "SprintDuplicateQuestions": "pairs"}
        kinds |= {"SummEvalSummarization.v2": "other"}
        assert {name: kind(parse_task(name)) for name in kinds} == kinds

    @pytest.mark.slow
    def test_an_unknown_name_gets_close_ones(self):
        with pytest.raises(InputError) as raised:
            parse_task("sts12")
        message = str(raised.value)
        assert message.startswith(
            f"unknown task 'sts12'; legal: {', '.join(FORMS)}, or the name of an mteb task; close: "
        )
        assert "STS12" in message.partition("close: ")[2].split(", ")

    def test_a_file_without_its_kind_gets_the_forms(self, monkeypatch):
        # Of mteb's thousand names none is close; to list them takes seconds.
        monkeypatch.setattr(mteb, "get_tasks", lambda **_: [])
        with pytest.raises(InputError, match=r"unknown task 'pairs\.jsonl'; legal: sts:FILE, .*, or .* an mteb task$"):
            parse_task("pairs.jsonl")

    def test_refuses_tasks_about_pictures(self):
        with pytest.raises(InputError, match="task 'CIFAR10' is about image; only tasks about text can be evaluated"):
            parse_task("CIFAR10")

    def test_files_are_read_before_mteb_is_needed(self, write, monkeypatch):
        monkeypatch.setitem(sys.modules, "mteb", None)
        with pytest.raises(InputError, match="line 1: no field 'sentence1'"):
            parse_task(f"sts:{write('a.jsonl', [{'text': 'a'}])}")
        with pytest.raises(MissingExtraError, match=r'mteb is not installed; run: pip install .*\[eval\]"'):
            parse_task(f"sts:{write('b.jsonl', STS)}")
        with pytest.raises(MissingExtraError, match="mteb is not installed"):
            parse_task("STS12")


@pytest.mark.process
def test_import_is_light():
    check = (
        "import sys, valuembed.evaluation.local_tasks; "
        "print([name for name in ('mteb', 'torch', 'numpy', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
