"""The experiments end to end on tiny models and data of a few rows."""

from __future__ import annotations

import json

import pytest

from valuembed.errors import CheckpointError, InputError, OutputError
from valuembed.testing import tiny_checkpoint

pytest.importorskip("mteb")
pytest.importorskip("matplotlib")

from valuembed.research import reproduction as module
from valuembed.research.reproduction import plan, reproduce

# sklearn on sets of a few rows, and packages that mteb imports.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*sklearn.*"),
]

STS = [
    ("A man walks.", "A man is walking.", 4.5),
    ("A dog runs.", "The market opens at nine.", 0.2),
    ("It rains.", "Rain falls on the town.", 3.8),
    ("She reads a book.", "She is reading.", 4.0),
    ("The train is late.", "A bird sings.", 0.0),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two of the STS sets, and reranking."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("STS12", STS), ("STSBenchmark.en.test", STS[::-1])):
        lines = [json.dumps({"sentence1": a, "sentence2": b, "score": score}) for a, b, score in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    answers = [
        {"qid": number, "question": f"Question {number}?", "answer": f"Answer {place} to {number}.", "label": place % 2}
        for number in range(3)
        for place in range(3)
    ]
    (folder / "TREC-QA.test.jsonl").write_text("\n".join(map(json.dumps, answers)))
    return folder


@pytest.fixture(scope="module")
def run(folder, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "report"
    made = reproduce(
        "llama-2-7b", model=folder, local=data, output=output, rows=["va*", "prompt_eol"], skip=["va_half"]
    )
    return made, output


class TestRun:
    def test_rows_and_layers(self, run):
        made, _ = run
        assert [row.id for row in made.rows] == ["va_full", "va", "prompt_eol"]
        # 20-27 of 32 in 4 layers: 20 * 4 / 32 = 2.5, 24 * 4 / 32 = 3.
        assert {label: recipe.layers for label, recipe in made.evaluation.recipes.items()} == {
            "VA (Full)": (0, 1, 2, 3),
            "VA (selected)": (2, 3),
            "PromptEOL": None,
        }
        assert made.mapped == (
            "Layers chosen for LLaMA-2-7B are brought over by relative depth: 20-27 of 32 became 2-3 of 4."
        )

    def test_scores_where_there_is_data(self, run):
        made, _ = run
        scored = {
            label: [task for task, score in row.items() if score is not None] for label, row in made.table().items()
        }
        assert list(scored) == ["VA (Full)", "VA (selected)", "PromptEOL"]
        assert all(tasks == ["STS12", "STSBenchmark", "TREC-QA"] for tasks in scored.values())
        # The same pairs in another order.
        assert all(row["STS12"] == pytest.approx(row["STSBenchmark"]) for row in made.table().values())
        assert [column.name for column in made.columns] == [
            *("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R"),
            *("BBC-news", "Cranfield", "banking77", "TREC-QC", "TREC-QA"),
        ]
        reasons = {column.name: column.reason for column in made.columns if column.reason}
        assert reasons["SICK-R"] == "no file SICK-R.jsonl"
        assert reasons["banking77"] == "no file banking77.train.jsonl"

    def test_files(self, run, folder, data):
        made, output = run
        text = (output / "report.md").read_text()
        assert text == made.to_markdown()
        # The names of folders, never their paths.
        assert (
            f"`valuembed reproduce --backbone llama-2-7b --model {folder.name} --local {data.name} "
            "--rows 'va*,prompt_eol' --skip 'va_half'`"
        ) in text
        assert str(data) not in text
        assert f"run on {folder.name}\n" in text
        assert (output / "sts.png").read_bytes().startswith(b"\x89PNG")

    def test_a_second_run_computes_nothing(self, run, folder, data, monkeypatch):
        made, output = run
        again = reproduce("llama-2-7b", model=folder, local=data, output=output, rows=["va_full", "va"])
        assert [score.reused for score in again.evaluation.scores] == [True] * 6
        assert again.table() == {label: row for label, row in made.table().items() if label != "PromptEOL"}

    def test_only_some_tasks(self, folder, data):
        made = reproduce("qwen-3-8b", model=folder, local=data, rows=["hidden_mean"], tasks=["trec-qa"])
        assert [column.name for column in made.columns] == ["TREC-QA"]
        assert made.mapped == ""
        assert "## Data\n\n- TREC-QA: questions: " in made.to_markdown()

    def test_what_decides_scores_is_in_the_command(self, folder, data):
        import torch

        chosen = {"rows": ["hidden_mean"], "tasks": ["trec-qa"], "max_tokens": 20}
        made = reproduce("qwen-3-8b", model=folder, local=data, **chosen, dtype=torch.float32)
        assert made.command.endswith("--rows 'hidden_mean' --tasks 'trec-qa' --dtype float32 --max-tokens 20")


class TestData:
    def test_what_cannot_be_fetched_is_no_data(self, folder, monkeypatch):
        class Task:
            def __init__(self, spec):
                self.spec = spec

            def load_data(self):
                raise ConnectionError(f"no way\nto {self.spec}")

        monkeypatch.setattr(module, "parse_task", Task)
        monkeypatch.setattr(module, "evaluate", None)
        made = reproduce("qwen-3-8b", model=folder, rows=["va"], tasks=["STS1?", "NFCorpus"])
        assert made.evaluation is None
        assert {column.name: column.reason for column in made.columns} == {
            name: f"ConnectionError: no way to {name}"
            for name in ("STS12", "STS13", "STS14", "STS15", "STS16", "NFCorpus")
        }
        assert made.table() == {"VA (selected)": {column.name: None for column in made.columns}}

    def test_a_damaged_file_is_an_error(self, folder, data, tmp_path):
        (tmp_path / "STS12.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n')
        with pytest.raises(InputError, match=r"STS12.jsonl, line 1: no field 'score'"):
            reproduce("qwen-3-8b", model=folder, local=tmp_path, rows=["va"])

    def test_an_interruption_keeps_what_there_is(self, folder, data, tmp_path, monkeypatch):
        from mteb.abstasks import AbsTaskRetrieval

        def evaluate(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(AbsTaskRetrieval, "evaluate", evaluate)
        chosen = {"model": folder, "local": data, "output": tmp_path, "rows": ["va"]}
        with pytest.raises(KeyboardInterrupt):
            reproduce("qwen-3-8b", **chosen)
        monkeypatch.undo()
        made = reproduce("qwen-3-8b", **chosen)
        assert {score.task: score.reused for score in made.evaluation.scores} == {
            "STS12": True,
            "STSBenchmark.en.test": True,
            "TREC-QA.test": False,
        }


class TestPlan:
    def test_of_a_backbone_that_is_not_here(self):
        work = plan("llama-2-7b")
        assert (work.model, work.num_layers, work.tflops) == ("meta-llama/Llama-2-7b-hf", 32, 100.0)
        assert len(work.passes) == 8
        assert sum(part.templates for part in work.passes) == 15
        # FutureEOL is read by value methods alone, up to layer 27.
        assert [part.layers for part in work.passes] == [32, 32, 28, 32, 32, 32, 32, 32]
        assert work.texts["STS12"][0] == 2 * 3108
        assert not work.missing
        assert not work.counted
        # 120 million tokens through 6.5 billion parameters: 2 * 120e6 * 6.5e9 / 100e12 s = 4.3 hours.
        assert work.hours == pytest.approx(2 * work.tokens * 6.48e9 / 1e14 / 3600, rel=0.01)
        assert plan("llama-2-7b", tflops=50).hours == pytest.approx(2 * work.hours)

    def test_of_local_data(self, data):
        work = plan("bundled", local=data, rows=["va"])
        assert work.texts.keys() == {"STS12", "STSBenchmark", "TREC-QA"}
        # 5 pairs; 3 questions and 9 answers.
        assert [count for count, _ in work.texts.values()] == [10, 10, 12]
        assert work.missing["SICK-R"] == "no file SICK-R.jsonl"
        assert (work.model, work.tflops, work.counted) == ("bundled", 0.08, True)
        assert work.notes == (
            "Layers chosen for Qwen3-8B are brought over by relative depth: 26-27, 29-31 of 36 became 8-10 of 12.",
        )

    def test_no_more_tokens_than_are_fed(self, folder):
        whole, cut = (plan("llama-2-7b", model=folder, rows=["va"], max_tokens=most) for most in (None, 16))
        texts = sum(count for count, _ in whole.texts.values())
        assert cut.tokens <= 16 * texts < whole.tokens
        assert cut.hours < whole.hours

    def test_loads_no_weights_and_asks_no_network(self, tmp_path, monkeypatch):
        folder = tiny_checkpoint(tmp_path / "tiny", "llama")
        (folder / "model.safetensors").unlink()
        monkeypatch.setattr(module, "parse_task", None)
        assert plan("llama-2-7b", model=folder, rows=["va"]).model == "tiny"
        with pytest.raises(CheckpointError, match="model 'some/where': its configuration cannot be read"):
            plan("llama-2-7b", model="some/where")


class TestErrors:
    @pytest.mark.parametrize("verb", [reproduce, plan])
    def test_unknown_names(self, verb, data):
        with pytest.raises(
            InputError, match=r"no row is named 'vaa'; legal, with \* for anything: va_full, va_half, va,"
        ):
            verb(rows=["vaa"])
        with pytest.raises(InputError, match="no row is named 'mata_eol'"):
            verb(skip=["mata_eol"])
        with pytest.raises(InputError, match=r"no task is named 'STS22'; legal, .*: STS12, STS13"):
            verb(tasks=["STS12", "STS22"])
        with pytest.raises(InputError, match=r"no task is named 'NFCorpus'; legal, .*: STS12, .*, Cranfield"):
            verb(local=data, tasks=["NFCorpus"])

    def test_no_row_left(self):
        with pytest.raises(InputError, match="no row is left of va_full, va_half"):
            plan(rows=["va"], skip=["va*"])

    def test_no_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"local folder .*none does not exist; expected files such as STS12.jsonl"):
            plan(local=tmp_path / "none")

    def test_nothing_in_the_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"holds none of the files STS12.jsonl, .*, TREC-QA.test.jsonl"):
            plan(local=tmp_path)

    def test_no_speed(self):
        with pytest.raises(InputError, match="tflops=0 has to be above 0"):
            plan(tflops=0)

    def test_output_is_a_file(self, tmp_path, data):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write into .*file: File exists"):
            reproduce(local=data, output=tmp_path / "file")
