"""The script that makes the bundled model: rows, lessons, and a small run that is stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import train_bundled
from bundling import lessons, rows, text, training
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import valuembed

# 64 invented words, each in 10 of 960 sentences: neither common (ln 96 > 4) nor rare (10 >= 5).
FIRST = ("ba", "ko", "li", "mu", "ne", "po", "ra", "su")
LAST = ("der", "fin", "gal", "hos", "jat", "kel", "mon", "tir")
NAMES = [first + last for first in FIRST for last in LAST]
DOCUMENTS = [
    f"The {name} saw a house in town number {number}. Then the {name} went home with it.\nIt was {number} again."
    for number in range(5)
    for name in NAMES
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "open.jsonl"
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    return file


def arguments(corpus: Path, out: Path, trunk: int = 3000) -> list[str]:
    small = "--branch 2000 --layers 2 --width 32 --vocabulary 400 --rows 8 --length 32 --lessons-from 1 --device cpu"
    made = ["train", "--corpus", str(corpus), "--out", str(out), "--trunk", str(trunk), *small.split()]
    return [*made, "--no-compile", "--look-every", "4", "--save-every", "3"]


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    train_bundled.main(arguments(corpus, out))
    return out


class TestText:
    def test_one_document_in_a_hundred_is_held_out_whatever_the_order(self):
        held_out = [number for number in range(20_000) if text.is_held_out(f"Document {number}.")]
        assert 150 < len(held_out) < 250

    def test_sentences_stay_in_their_paragraphs(self):
        assert list(text.sentences("One. Two?\nThree! ")) == [["One.", "Two?"], ["Three!"]]


class TestRows:
    def test_a_document_goes_on_in_the_next_row_behind_a_bos(self):
        # BOS 1, EOS 2, padding 0. [5, 6] takes 4 places of 6; [7, 8, 9] begins in the last 2 and goes on.
        packed = rows.pack([[5, 6], [7, 8, 9]], 6)
        assert packed.tolist() == [[1, 5, 6, 2, 1, 7], [1, 8, 9, 2, 0, 0]]

    def test_no_piece_sees_another(self):
        positions, visible = rows.pieces(torch.tensor([[1, 5, 1, 7]]))
        assert positions.tolist() == [[0, 1, 0, 1]]
        assert visible[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]

    def test_nothing_is_asked_where_nothing_can_be_known(self):
        assert rows.labels(torch.tensor([[1, 5, 2, 1, 7, 0]])).tolist() == [[5, 2, -100, 7, -100]]

    def test_a_piece_gives_the_same_alone(self):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, head_dim=8,
                        num_attention_heads=2, num_key_value_heads=1, attn_implementation="eager")
        )  # fmt: skip
        ids, positions, mask = training.inputs(torch.tensor([[1, 5, 6, 1, 7, 8]]))
        packed = model(input_ids=ids, position_ids=positions, attention_mask={"full_attention": mask}).logits
        alone = model(input_ids=torch.tensor([[1, 7, 8]])).logits
        assert (packed[:, 3:] - alone).abs().max() < 1e-6


@pytest.mark.slow
class TestLessons:
    def test_weights_are_idf_beyond_that_of_common_words(self):
        # 200 sentences: "often" in all, idf 0; "seldom" in 5 of them: ln 40 - 4 < 0; with 1,000: ln 200 - 4.
        document = " ".join(["Often."] * 995 + ["Seldom."] * 5)
        assert lessons.weigh_words([document]) == pytest.approx({"seldom": np.log(200) - 4})
        assert lessons.weigh_words([document.replace("Seldom. ", "", 1)]) == {}

    def test_answers_are_the_sentences_own_words_or_the_next_ones(self):
        weights = {"farmer": 1.0, "tractor": 3.0}
        document = "The farmer waits for a tractor here. Farmer Brown is never late."
        made = [lesson for seed in range(20) for lesson in lessons.make_lessons([document], weights, 1.0, seed)]
        own = lessons.Lesson(
            'This sentence : "The farmer waits for a tractor here." means in one word:"',
            (("tractor", 0.75), ("farmer", 0.25)),
        )
        future = lessons.Lesson(
            'This sentence : "The farmer waits for a tractor here." will be followed by , in one word:"',
            # The first word of its sentence, without the capital letter.
            (("farmer", 1.0),),
        )
        assert own in made
        assert future in made
        # Nothing follows the last sentence.
        assert {lesson.prompt for lesson in made if "Brown" in lesson.prompt} == {
            'This sentence : "Farmer Brown is never late." means in one word:"'
        }

    def test_ends_are_where_a_prompt_alone_ends(self, made):
        tokenizer = AutoTokenizer.from_pretrained(made / "plain" / "model")
        weights = lessons.weigh_words(DOCUMENTS)
        some = list(lessons.make_lessons(DOCUMENTS[:30], weights, 1.0, 0))
        packed = lessons.pack_lessons(some, tokenizer, 96, 0)
        prompts = {tuple(tokenizer(lesson.prompt)["input_ids"]): lesson for lesson in some}
        assert len(some) > 20
        found = 0
        for ids, ends, answers, shares in zip(packed.ids, packed.ends, packed.answers, packed.weights, strict=True):
            start = 0
            for end, words, share in zip(ends, answers, shares, strict=True):
                if end < 0:
                    break
                lesson = prompts[tuple(ids[start : end + 1].tolist())]
                first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word, _ in lesson.answers]
                assert words[: len(first)].tolist() == first
                assert share.sum() == pytest.approx(1)
                found += 1
                after = [place for place in range(end + 1, len(ids)) if ids[place] in (text.BOS_ID, text.PAD_ID)]
                start = after[0] if after else len(ids)
        assert found == len(some)


class TestTraining:
    def test_answers_are_held_to_their_distribution(self):
        torch.manual_seed(0)
        scores = torch.randn(1, 3, 4)

        class Fixed(torch.nn.Module):
            def forward(self, **_: object) -> object:
                return type("Output", (), {"logits": scores})

        wanted = torch.tensor([[2, -100]])
        known, answered = training.lesson_loss(
            Fixed(), None, None, None, wanted, torch.tensor([1]), torch.tensor([[0, 3]]), torch.tensor([[0.25, 0.75]])
        )
        logs = scores.log_softmax(-1)
        # Row 0 predicts token 2; row 1 answers with 0 (a quarter) and 3 (three quarters).
        assert known == pytest.approx(-float(logs[0, 0, 2]), abs=1e-6)
        assert answered == pytest.approx(-float(0.25 * logs[0, 1, 0] + 0.75 * logs[0, 1, 3]), abs=1e-6)

    def test_every_row_is_taken_once_an_epoch_in_an_order_that_the_seed_decides(self):
        order = training.Order(5, seed=1)
        first, second = order.take(0, 5), order.take(5, 5)
        assert sorted(first) == sorted(second) == list(range(5))
        assert first.tolist() != second.tolist()
        assert training.Order(5, seed=1).take(3, 4).tolist() == [*first[3:], *second[:2]]
        assert training.Order(50, seed=2).take(0, 50).tolist() != training.Order(50, seed=1).take(0, 50).tolist()

    def test_matrices_of_the_layers_go_to_muon_all_else_to_adamw(self):
        model = valuembed.testing.models.tiny_causal_lm("qwen3")
        muon, adamw = training.optimizers(model, training.Settings())
        names = {id(weight): name for name, weight in model.named_parameters()}
        of_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
        of_adamw = {names[id(weight)] for group in adamw.param_groups for weight in group["params"]}
        assert of_muon | of_adamw == set(names.values())
        assert not of_muon & of_adamw
        assert all(name.endswith("proj.weight") for name in of_muon)
        assert "model.embed_tokens.weight" in of_adamw

    def test_a_loss_that_is_no_number_ends_the_run(self, tmp_path):
        model = valuembed.testing.models.tiny_causal_lm("qwen3", attn_implementation="eager")
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        some = np.full((4, 8), 3, np.uint16)
        run = training.Trainer(model, some, some, None, training.Settings(rows=2), tmp_path / "state.pt")
        with pytest.raises(FloatingPointError, match="the loss is not a number at step 1"):
            run.run(100)
        assert not (tmp_path / "state.pt").exists()


@pytest.mark.slow
class TestCommand:
    def test_makes_both_variants_from_one_trunk_with_one_budget(self, made):
        records = {name: json.loads((made / name / "training.json").read_text()) for name in ("plain", "taught")}
        assert records["plain"]["lesson_rows"] == 0
        # A quarter of each step's 8 rows, in the branch alone.
        trunk_steps = -(-records["taught"]["trunk_tokens"] // (8 * 32))
        assert records["taught"]["lesson_rows"] == 2 * (records["taught"]["steps"] - trunk_steps) > 0
        for record in records.values():
            assert record["corpus_rows"] + record["lesson_rows"] == 8 * record["steps"]
            assert record["trunk_tokens"] >= 3000
            assert record["trunk_tokens"] + 2000 <= record["tokens"] < record["trunk_tokens"] + 2000 + 8 * 32
            assert record["curve"][-1][0] == record["tokens"]
            assert record["validation_loss"] < record["curve"][0][2]
            assert record["versions"]["torch"] == torch.__version__

    @pytest.mark.parametrize("variant", ["plain", "taught"])
    def test_what_it_makes_is_a_checkpoint_that_loads(self, made, variant):
        folder = made / variant / "model"
        assert {file.name for file in folder.iterdir()} == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        assert {str(weight.dtype) for weight in load_file(folder / "model.safetensors").values()} == {"torch.bfloat16"}
        found = valuembed.info(folder, "va", "all")
        assert (found.architecture, found.chosen_layers, found.width) == ("Qwen3Model", (0, 1), 16)
        model = valuembed.load(folder, "aligned_wva", layers="all")
        assert model.encode(["The bader saw a house."]).shape == (1, 32)
        assert model.tokenizer("Bread.")["input_ids"][0] == text.BOS_ID

    def test_a_stopped_run_goes_on_to_the_same_weights(self, made, corpus, tmp_path, monkeypatch):
        steps = 0
        step = training.Trainer._step

        def stopping(trainer: training.Trainer) -> float:
            nonlocal steps
            steps += 1
            if steps % 8 == 0:
                raise KeyboardInterrupt
            return step(trainer)

        monkeypatch.setattr(training.Trainer, "_step", stopping)
        starts = 0
        while not (tmp_path / "taught" / "training.json").exists():
            starts += 1
            try:
                train_bundled.main(arguments(corpus, tmp_path))
            except KeyboardInterrupt:
                continue
        assert starts > 4
        for variant in ("plain", "taught"):
            there = load_file(made / variant / "model" / "model.safetensors")
            again = load_file(tmp_path / variant / "model" / "model.safetensors")
            assert all(torch.equal(there[name], again[name]) for name in there)
            curves = [json.loads((out / variant / "training.json").read_text())["curve"] for out in (made, tmp_path)]
            assert [point[0] for point in curves[0]] == [point[0] for point in curves[1]]

    def test_data_of_other_settings_is_refused(self, made, corpus):
        with pytest.raises(SystemExit, match=r'was made with .*"length": 32.*, asked for is .*"length": 64'):
            train_bundled.main([*arguments(corpus, made), "--length", "64"])

    def test_loss_of_checkpoints(self, made, corpus, capsys):
        folder = made / "plain" / "model"
        train_bundled.main(["loss", "--corpus", str(corpus), "--length", "32", "--device", "cpu", str(folder)])
        record = json.loads((made / "plain" / "training.json").read_text())
        row = capsys.readouterr().out.splitlines()[-1]
        nats, bits = (float(cell) for cell in row.split("|")[2:4])
        # The folder's weights are rounded to bfloat16.
        assert nats == pytest.approx(record["validation_loss"], abs=0.02)
        held_out = [document for document in DOCUMENTS if text.is_held_out(document)]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = sum(len(tokenizer(document)["input_ids"]) for document in held_out)
        assert bits == pytest.approx(nats / np.log(2) * tokens / sum(map(len, held_out)), rel=0.05)
