"""The tables on scores made up by hand: what stands in each cell, what is a mean of what, and what is never said."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from valuembed.evaluation.results import Evaluation, Failure, Score
from valuembed.research.experiments import read_backbone
from valuembed.research.report import Column, Reproduction

STS_SETS = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R"]


def column(name, kind="sts", has_data=True, metric="cosine_spearman"):
    metadata = SimpleNamespace(name=f"{name}-{kind}-0123abcd", main_score=metric, description=f"9 rows of {name}")
    task = SimpleNamespace(metadata=metadata)
    return Column(name, kind, f"{kind}:{name}", task if has_data else None, "" if has_data else f"no file {name}.jsonl")


def made(columns, scores, *, model="bundled", failures=(), rows=("va", "meta_eol")):
    """A report of scores ``{row id: {task: percent}}``."""
    backbone = read_backbone("qwen-3-8b")
    chosen = tuple(row for row in backbone.rows if row.id in rows)
    label = {row.id: row.label for row in chosen}
    found = tuple(
        Score(
            method=label[row],
            task=name,
            name=next(entry.task.metadata.name for entry in columns if entry.name == name),
            kind="",
            metric="",
            score=value,
            width=128,
            layers="5-6",
            texts=1,
            tokens=1,
            truncated=0,
            seconds=0.0,
            reused=False,
        )
        for row, of_row in scores.items()
        for name, value in of_row.items()
    )
    # Absolute layers, as an evaluation has them; hidden states are read after the final norm.
    recipes = {
        row.label: replace(row.recipe, layers=(5, 6)) if row.recipe.signal == "value" else row.recipe for row in chosen
    }
    evaluation = Evaluation(model, recipes, {}, found, tuple(failures)) if found or failures else None
    return Reproduction(backbone, model, "valuembed reproduce", chosen, tuple(columns), evaluation, "Layers mapped.")


def rows_of(report, heading):
    """Cells of the table below a heading, by first cell."""
    part = report.to_markdown().split(f"## {heading}", 1)[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def whole():
    """All seven sets, the scores 1 to 7 and 11 to 17."""
    scores = {
        "va": dict(zip(STS_SETS, range(1, 8), strict=True)),
        "meta_eol": dict(zip(STS_SETS, range(11, 18), strict=True)),
    }
    return made([column(name) for name in STS_SETS], scores)


@pytest.fixture
def part():
    """Two sets with data and one without; two tasks of classification, one of retrieval; one score failed."""
    columns = [
        column("STS12"),
        column("STS13"),
        column("SICK-R", has_data=False),
        column("Cranfield", "retrieval", metric="ndcg_at_10"),
        column("banking77", "classification", metric="accuracy"),
        column("TREC-QC", "classification", metric="accuracy"),
        column("TREC-QA", "reranking", has_data=False),
    ]
    scores = {
        "va": {"STS12": 10.0, "STS13": 20.0, "Cranfield": 30.0, "banking77": 50.0, "TREC-QC": 60.0},
        "meta_eol": {"STS12": 40.0, "Cranfield": 5.0, "banking77": 7.0, "TREC-QC": 8.0},
    }
    return made(columns, scores, failures=[Failure("MetaEOL", "STS13", "all vectors alike")])


class TestStsTable:
    def test_ours_beside_theirs(self, whole):
        rows = rows_of(whole, "STS")
        assert rows["row"] == ["layers", "width", *STS_SETS, "mean of 7"]
        # (1 + ... + 7) / 7 = 4
        assert rows["VA (selected)"] == ["5-6", "128", *(f"{n}.00" for n in range(1, 8)), "4.00"]
        assert rows["MetaEOL"][-1] == "14.00"
        source = "*DySem repository (arXiv 2605.29751): "
        theirs = {label: cells for label, cells in rows.items() if label.startswith("*")}
        assert theirs == {
            f"{source}mean of hidden states, Qwen3-8B*": ["", "", *["-"] * 7, "38.82"],
            f"{source}PromptEOL, Qwen3-8B*": ["", "", *["-"] * 7, "68.91"],
            f"{source}AlignedWVA, Qwen3-8B*": [
                *("", ""),
                *("64.91", "80.90", "70.56", "77.38", "78.90", "76.15", "74.75", "74.79"),
            ],
            f"{source}DySem (13 passes, scores pairs), Qwen3-8B*": ["", "", *["-"] * 7, "80.54"],
        }

    def test_a_set_without_data_leaves_no_mean_of_all(self):
        columns = [column(name, has_data=name != "STS16") for name in STS_SETS]
        scores = {"va": {name: 7.0 for name in STS_SETS if name != "STS16"}}
        rows = rows_of(made(columns, scores, rows=["va"]), "STS")
        assert rows["row"][-2:] == ["mean of 7", "mean of the 6 with data"]
        assert rows["VA (selected)"][6] == "no data"
        assert rows["VA (selected)"][-2:] == ["no data", "7.00"]
        theirs = next(cells for label, cells in rows.items() if "AlignedWVA" in label)
        # Over the same six sets: (64.91 + 80.90 + 70.56 + 77.38 + 76.15 + 74.75) / 6 = 74.11
        assert theirs[-2:] == ["74.79", "74.11"]

    def test_failed_is_not_no_data(self, part):
        rows = rows_of(part, "STS")
        assert rows["row"] == ["layers", "width", "STS12", "STS13", "SICK-R", "mean of the 2 chosen"]
        assert rows["VA (selected)"] == ["5-6", "128", "10.00", "20.00", "no data", "15.00"]
        assert rows["MetaEOL"] == ["final norm", "128", "40.00", "failed", "no data", "failed"]


class TestOtherTables:
    def test_other_kinds(self, part):
        assert rows_of(part, "The other kinds of tasks") == {
            "row": [
                "Cranfield, retrieval, ndcg_at_10",
                "banking77, classification, accuracy",
                "TREC-QC, classification, accuracy",
                "TREC-QA, reranking",
            ],
            "VA (selected)": ["30.00", "50.00", "60.00", "no data"],
            "MetaEOL": ["5.00", "7.00", "8.00", "no data"],
        }

    def test_by_kind(self, part):
        rows = rows_of(part, "By kind")
        assert rows["row"] == ["retrieval", "sts", "classification", "reranking", "average"]
        assert rows["VA (selected)"] == ["30.00", "15.00", "55.00", "no data", "no data"]
        assert rows["MetaEOL"] == ["5.00", "failed", "7.50", "no data", "no data"]

    def test_average_over_kinds(self):
        columns = [column("STS12"), column("A", "retrieval"), column("B", "retrieval")]
        report = made(columns, {"va": {"STS12": 10.0, "A": 20.0, "B": 40.0}}, rows=["va"])
        # Retrieval has 30; (10 + 30) / 2.
        assert rows_of(report, "By kind")["VA (selected)"] == ["30.00", "10.00", "20.00"]
        assert report.kinds() == {"VA (selected)": {"retrieval": 30.0, "sts": 10.0, "average": 20.0}}

    def test_printed_figures_stand_apart_from_tasks(self, whole):
        text = whole.to_markdown()
        row = "| VA (Full), Qwen3-8B | 1024 | 26.85  24.65  20.59  58.37  18.69  41.41 |"
        assert text.count("26.85") == 1
        assert row in text.split("## As printed in the paper (MTEB, %)")[1]
        assert "none of them can be said to belong to a task" in text

    def test_nothing_at_all(self):
        report = made([column(name, has_data=False) for name in STS_SETS], {})
        assert rows_of(report, "STS")["MetaEOL"] == ["", "", *["no data"] * 8]
        assert report.figures() == {}


class TestText:
    def test_what_is_missing_and_why(self, part):
        text = part.to_markdown()
        assert "## Failed\n\n- STS13, MetaEOL: all vectors alike\n" in text
        assert "## Data\n\n- STS12: 9 rows of STS12\n" in text
        assert "## No data\n\n- SICK-R: no file SICK-R.jsonl\n- TREC-QA: no file TREC-QA.jsonl\n" in text

    def test_published_tasks_are_whole(self):
        published = replace(column("STS12"), spec="STS12")
        assert "## Data" not in made([published], {"va": {"STS12": 1.0}}, rows=["va"]).to_markdown()

    def test_where_it_comes_from(self, whole):
        text = whole.to_markdown()
        assert text.startswith(
            "# The paper's rows for Qwen3-8B, run on bundled\n\nMade by `valuembed reproduce` with val"
        )
        assert "Layers mapped. What others published is of Qwen3-8B, not of this model." in text
        assert "no evidence for a training-free method" in text

    def test_on_the_backbone_itself(self, whole):
        text = replace(whole, model="Qwen/Qwen3-8B", mapped="").to_markdown()
        assert "not of this model" not in text
        assert "no evidence" not in text

    def test_data(self, part):
        data = json.loads(json.dumps(part.to_dict()))
        assert data["table"]["MetaEOL"]["STS13"] is None
        assert data["table"]["VA (selected)"]["STS13"] == 20.0
        assert data["tasks"]["SICK-R"] == {"kind": "sts", "no_data": "no file SICK-R.jsonl"}
        assert data["rows"] == {"VA (selected)": "va", "MetaEOL": "meta_eol"}
        assert data["theirs"][0]["backbone"] == "Qwen3-8B"


class TestFigures:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_means_of_rows_and_of_what_is_published(self, whole):
        axes = whole.figures()["sts"].axes[0]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(
            [4, 14, 38.82, 68.91, 74.79, 80.54], abs=0.01
        )
        labels = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
        assert labels[:3] == ["VA (selected)", "MetaEOL", "mean of hidden states (Qwen3-8B, published)"]
        assert axes.patches[1].get_facecolor() != axes.patches[2].get_facecolor()

    def test_of_some_sets_only_what_is_known_of_each(self, part):
        axes = part.figures()["sts"].axes[0]
        # MetaEOL failed; of the published ones, only AlignedWVA is known by set: (64.91 + 80.90) / 2.
        assert [bar.get_height() for bar in axes.patches] == pytest.approx([15, 72.905])

    def test_kinds(self, part, whole):
        axes = part.figures()["kinds"].axes[0]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["retrieval", "sts", "classification"]
        assert list(whole.figures()) == ["sts"]

    def test_files(self, part, tmp_path):
        part.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kinds.png", "report.json", "report.md", "sts.png"]
        assert (tmp_path / "report.md").read_text() == part.to_markdown()
