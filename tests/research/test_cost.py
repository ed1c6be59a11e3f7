"""Costs against tokens, layers and operations counted by hand; times come from a clock of the tests' own."""

from __future__ import annotations

import json

import pytest

import valuembed.models.multi_readout
from valuembed.errors import InputError, OutputError
from valuembed.recipes.methods import resolve_recipe
from valuembed.research.cost import CostReport, MethodCost, measure_cost, random_texts
from valuembed.testing import tiny_config

pytestmark = pytest.mark.slow

TEXT = "A man walks."


def clock():
    """Seconds that go by only by being looked at: 1, 2, 3, ... between one look and the next."""
    now, step = 0.0, 0.0

    def look():
        nonlocal now, step
        step += 1
        now += step
        return now

    return look


def report(**seconds):
    costs = tuple(
        MethodCost(method=name, templates=1, tokens=10.0, layers=3, flops=1e9, seconds=values)
        for name, values in seconds.items()
    )
    return CostReport("tiny", 4, "cpu", "float32", 1, 2, "two texts", "aligned_wva", costs)


@pytest.fixture(scope="module")
def found(folder):
    methods = {
        "va": resolve_recipe("va", layers=[2], template="none"),
        "hidden": "hidden_mean",
        "aligned_wva": resolve_recipe("aligned_wva", layers=[0, 1], template='"{text}" is'),
        "twice": resolve_recipe("hidden_mean", template=["{text}", "{text}"]),
    }
    return measure_cost(folder, methods, [TEXT], rounds=3, clock=clock(), dtype="float32", device="cpu")


class TestMeasured:
    def test_tokens_and_layers(self, found, folder):
        readouts = valuembed.models.multi_readout.MultiReadout.load(folder, {"va": "va"})
        plain = len(readouts.reader.tokenize_texts([TEXT], None, None)[0][0].ids)
        quoted = len(readouts.reader.texts.rows([TEXT], '"{text}" is', max_tokens=None)[0].ids)
        assert quoted > plain
        assert [(cost.method, cost.templates, cost.tokens, cost.layers) for cost in found.costs] == [
            ("va", 1, plain, 3),
            ("hidden", 1, plain, 4),
            ("aligned_wva", 1, quoted, 2),
            ("twice", 2, 2 * plain, 4),
        ]

    def test_operations_by_hand(self, found):
        config = tiny_config("qwen3")
        m, h, g, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        into, out, mlp = 2 * m * (h + 2 * g) * d, 2 * h * d * m, 3 * 2 * m * config.intermediate_size
        cost = {cost.method: cost for cost in found.costs}

        def passed(t, layers):
            # Scores, then weighted values, of each head: two operations for each of t x t x d, twice.
            return layers * (t * (into + out + mlp) + 4 * h * t * t * d)

        def mean(t, width):
            return 2 * t * width

        t = cost["va"].tokens
        assert cost["hidden"].flops == passed(t, 4) + mean(t, m)
        assert cost["twice"].flops == 2 * cost["hidden"].flops
        # Two layers whole, of the third only the projections into queries, keys and values.
        assert cost["va"].flops == passed(t, 2) + t * into + mean(t, g * d)
        # Layer 0 whole; layer 1 up to the output projection. The last token is no mean.
        t = cost["aligned_wva"].tokens
        assert cost["aligned_wva"].flops == passed(t, 2) - t * mlp

    def test_methods_take_turns(self, found):
        # The clock is looked at twice a measurement, at steps 1 and 2, 3 and 4, ...: the n-th measurement takes 2n
        # seconds, for 1 text, so 2000n for 1,000. Order: 4 methods, then from the second on, then from the third on.
        assert {cost.method: [second / 2000 for second in cost.seconds] for cost in found.costs} == {
            "va": [1, 8, 11],
            "hidden": [2, 5, 12],
            "aligned_wva": [3, 6, 9],
            "twice": [4, 7, 10],
        }

    def test_what_it_is_about(self, found, folder):
        about = (found.model, found.num_layers, found.device, found.dtype, found.texts, found.texts_are)
        assert about == (folder.name, 4, "cpu", "float32", 1, "given")
        assert found.reference == "aligned_wva"
        assert found.details["origin"]["revision"] is None
        assert json.loads(json.dumps(found.to_dict()))["details"]["versions"].keys() == {"valuembed", "torch"}


def test_each_method_runs_alone(folder, monkeypatch):
    asked = []
    real = valuembed.models.multi_readout.MultiReadout.encode

    def encode(self, texts, *, names):
        asked.append(tuple(names))
        return real(self, texts, names=names)

    monkeypatch.setattr(valuembed.models.multi_readout.MultiReadout, "encode", encode)
    # The two would share a pass.
    found = measure_cost(folder, ["va", "aligned_va"], [TEXT, "Two."], rounds=2, clock=clock())
    assert asked == [("va",), ("aligned_va",), ("va",), ("aligned_va",), ("aligned_va",), ("va",)]
    # Without AlignedWVA, the first one is what the others are compared with.
    assert found.reference == "va"
    # Seconds 2, 4 and then, in the other order, 8 and 6, each over 2 texts.
    assert [cost.seconds for cost in found.costs] == [(1000.0, 4000.0), (2000.0, 3000.0)]


def test_every_method(folder):
    found = measure_cost(folder, "all", random_texts(3), rounds=1, clock=clock())
    cost = {cost.method: cost for cost in found.costs}
    assert list(cost) == list(valuembed.METHODS)
    # The claim: eight prompts, each longer than one, cost more than eight times that one.
    assert cost["meta_eol"].templates == 8
    assert cost["meta_eol"].flops > 8 * cost["aligned_wva"].flops
    assert cost["aligned_wva"].flops < cost["prompt_eol"].flops


def test_texts_of_its_own(folder):
    found = measure_cost(folder, ["va"], rounds=1, clock=clock())
    assert (found.texts, found.texts_are) == (200, "random words in the lengths of sentences")


def test_methods_as_they_are_named_on_the_command_line(folder):
    found = measure_cost(folder, ["va@1", "wva:future_eol@2"], [TEXT], rounds=1, clock=clock())
    assert [(cost.method, cost.layers) for cost in found.costs] == [("va@1", 2), ("wva:future_eol@2", 3)]


def test_the_first_texts_of_a_corpus(folder, tmp_path):
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("words\none\n\ntwo\nthree\n")
    found = measure_cost(folder, ["va"], corpus=corpus, text_column="words", count=2, rounds=1, clock=clock())
    assert (found.texts, found.texts_are) == (2, "the first of corpus.csv")
    expected = measure_cost(folder, ["va"], ["one", "two"], rounds=1, clock=clock())
    assert found.costs == expected.costs


def test_rounds_that_are_finished_are_kept(folder, tmp_path):
    pytest.importorskip("matplotlib")
    looks, look = [], clock()

    def interrupted():
        # Twice a measurement: two methods in two rounds, then one of the third round.
        if len(looks) == 10:
            raise KeyboardInterrupt
        looks.append(None)
        return look()

    with pytest.raises(KeyboardInterrupt):
        measure_cost(folder, ["va", "wva"], [TEXT], rounds=4, clock=interrupted, output=tmp_path)
    kept = json.loads((tmp_path / "cost.json").read_text())
    assert kept["unfinished"] == "Incomplete: ended after 2 of 4 rounds"
    assert [len(cost["seconds"]) for cost in kept["costs"]] == [2, 2]
    assert "\nIncomplete: ended after 2 of 4 rounds.\n\n1 text (given), 2 rounds" in (tmp_path / "cost.md").read_text()
    found = measure_cost(folder, ["va", "wva"], [TEXT], rounds=2, clock=clock(), output=tmp_path)
    assert json.loads((tmp_path / "cost.json").read_text())["costs"][0]["seconds"] == list(found.costs[0].seconds)


def test_ratios_are_those_of_the_same_round():
    # A round under load takes ten times as long for both and changes no ratio: 2, 2, 3 have the median 2.
    ratios = report(va=(2.0, 20.0, 3.0), aligned_wva=(1.0, 10.0, 1.0)).ratios()
    assert ratios == {
        "va": {"tokens": 1.0, "flops": 1.0, "seconds": 2.0},
        "aligned_wva": {"tokens": 1.0, "flops": 1.0, "seconds": 1.0},
    }


def test_table():
    text = report(va=(2.0, 20.0, 3.0), aligned_wva=(1.0, 10.0, 1.0)).to_markdown()
    assert "# What each method costs on tiny\n\n2 texts (two texts), 3 rounds" in text
    assert "on cpu, float32, 1 thread" in text
    assert "| va | 10.0 | 3 | 1 | 3 (2 to 20) | 2.00 |" in text


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    made = report(va=(2.0,), aligned_wva=(1.0,))
    made.save(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["cost.json", "cost.md", "cost.png"]
    assert json.loads((folder / "cost.json").read_text())["ratios"] == made.ratios()
    assert (folder / "cost.md").read_text() == made.to_markdown()
    assert (folder / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_chart():
    pytest.importorskip("matplotlib")
    axes = report(va=(2.0,), aligned_wva=(1.0,)).figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["va", "aligned_wva"]
    # Tokens, operations and seconds of va, then of aligned_wva, series by series.
    assert [bar.get_height() for bar in axes.patches] == [1, 1, 1, 1, 2, 1]


class TestSampleTexts:
    def test_are_the_same_each_time(self):
        assert random_texts(5) == random_texts(200)[:5]

    def test_are_as_long_as_sentences(self):
        lengths = sorted(len(text.split()) for text in random_texts())
        assert (lengths[0] >= 4, lengths[-1] <= 60, 9 <= lengths[100] <= 13) == (True, True, True)


class TestErrors:
    def test_no_texts(self, folder):
        with pytest.raises(InputError, match="no texts to embed; the cost of a method is measured on at least one"):
            measure_cost(folder, ["va"], [])

    def test_no_text_in_the_corpus(self, folder, tmp_path):
        (tmp_path / "corpus.txt").write_text("\n \n")
        with pytest.raises(InputError, match=r"^input .*corpus\.txt holds no text: all 2 rows are blank$"):
            measure_cost(folder, ["va"], corpus=tmp_path / "corpus.txt")
        with pytest.raises(InputError, match="give one of texts and corpus"):
            measure_cost(folder, ["va"], [TEXT], corpus=tmp_path / "corpus.txt")

    def test_no_rounds(self, folder):
        with pytest.raises(InputError, match="rounds=0 has to be at least 1"):
            measure_cost(folder, ["va"], [TEXT], rounds=0)

    def test_not_a_folder(self, tmp_path):
        file = tmp_path / "file"
        file.touch()
        with pytest.raises(OutputError, match=r"cannot write into .*file: (File exists|Not a directory)"):
            report(aligned_wva=(1.0,)).save(file)
