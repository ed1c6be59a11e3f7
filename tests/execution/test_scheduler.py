"""Cutting rows into steps, and the rotary frequencies that follow the longest text of a step."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import valuembed
from valuembed.backbone import rope
from valuembed.backbone.rope import rope_groups
from valuembed.execution import scheduler
from valuembed.execution.scheduler import plan_steps, schedule, usual_step
from valuembed.readout.layout import pad_right
from valuembed.testing import tiny_checkpoint, tiny_decoder
from valuembed.tokenization import TokenSequence

SWITCH = 32
DYNAMIC = {
    "max_position_embeddings": SWITCH,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
# d = 8, so four frequencies, each with its own factor; the two sets are far apart.
LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": SWITCH,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.0, 1.0, 1.0],
        "long_factor": [3.0, 5.0, 7.0, 9.0],
        "original_max_position_embeddings": SWITCH,
    },
}


def computed(step, lengths, packed_cost=None):
    padded = len(step) * max(lengths[row] for row in step)
    return padded if packed_cost is None else min(padded, packed_cost * sum(lengths[row] for row in step))


class TestSteps:
    @pytest.mark.parametrize(
        ("cost", "steps"),
        [
            # Rows of 10, 9, 9 and 2 tokens: 10 alone saves 1 * 2 tokens of padding, 2 alone 7.
            (0, [[1], [0, 3], [2]]),
            (3, [[1, 0, 3], [2]]),
            (8, [[1, 0, 3, 2]]),
        ],
    )
    def test_by_hand(self, cost, steps):
        assert plan_steps([9, 10, 2, 9], cost=cost) == steps

    def test_a_budget_by_hand(self):
        # Four rows of 9 are more than 35 tokens; 10, 9 and 9, 9, 2 are 2 * 10 + 3 * 9, one less than 3 * 10 + 2 * 9.
        assert plan_steps([9, 10, 2, 9, 9], 35, 100) == [[1, 0], [3, 4, 2]]
        # In one row 9, 9 and 2 are just 20.
        assert plan_steps([9, 10, 2, 9, 9], 20, 100, packed_cost=1.0) == [[1, 0], [3, 4, 2]]

    def test_a_row_over_the_budget_goes_alone(self):
        assert plan_steps([3, 40, 3], 10, 100) == [[1], [0, 2]]
        assert plan_steps([3, 40, 3], 10, 100, packed_cost=1.0) == [[1], [0, 2]]

    def test_no_rows_no_steps(self):
        assert plan_steps([]) == []

    @given(
        lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9),
        budget=st.integers(1, 100),
        cost=st.integers(0, 40),
        border=st.integers(0, 30),
        packed_cost=st.sampled_from([None, 1.0, 1.25]),
    )
    def test_no_legal_cut_costs_less(self, lengths, budget, cost, border, packed_cost):
        def legal(steps):
            fits = all(len(step) == 1 or computed(step, lengths, packed_cost) <= budget for step in steps)
            return fits and all(len({lengths[row] > border for row in step}) == 1 for step in steps)

        def price(steps):
            return sum(cost + computed(step, lengths, packed_cost) for step in steps)

        steps = plan_steps(lengths, budget, cost, lambda length: length > border, packed_cost=packed_cost)
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        assert [row for step in steps for row in step] == order
        assert legal(steps)
        ways = []
        for cut in itertools.product([False, True], repeat=len(order) - 1):
            ways.append([[order[0]]])
            for apart, row in zip(cut, order[1:], strict=True):
                ways[-1].append([row]) if apart else ways[-1][-1].append(row)
        assert price(steps) == min(map(price, filter(legal, ways)))

    @pytest.mark.parametrize("median", [25, 40, 100])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_padding_stays_under_five_percent(self, median, device):
        # Lengths as texts have them: log-normal with sigma 0.8, from a few tokens to some hundreds.
        drawn = np.random.default_rng(0).lognormal(np.log(median), 0.8, size=4000)
        lengths = np.maximum(drawn.astype(int), 1).tolist()
        budget, cost = usual_step(torch.device(device))
        steps = plan_steps(lengths, budget, cost)
        sizes = [computed(step, lengths) for step in steps]
        assert max(sizes) <= budget
        assert sum(sizes) / sum(lengths) < 1.05
        # Nor is that bought with small steps: on average they hold more than a third of the budget.
        assert sum(sizes) / len(steps) > budget / 3
        # The measure means something: in the order of arrival, 64 at a time, twice the tokens would be computed.
        blocks = [range(start, min(start + 64, 4000)) for start in range(0, 4000, 64)]
        assert sum(computed(block, lengths) for block in blocks) / sum(lengths) > 2

    def test_padding_is_on_the_right_and_masked(self):
        ids, mask = pad_right([[5, 6, 7], [8], [9, 10]])
        assert (ids.dtype, ids.shape) == (torch.long, (3, 3))
        assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
        assert ids[mask.bool()].tolist() == [5, 6, 7, 8, 9, 10]


class TestSeveralTemplates:
    """Sequences of one text that differ in length, as by Echo beside PromptEOL."""

    @staticmethod
    def steps(lengths: tuple[int, ...], texts: int, cost: int) -> list[list[int]]:
        sequences = tuple(TokenSequence([1] * length, (0, length)) for length in lengths)
        (batch,) = schedule([sequences] * texts, 1000, cost)
        places = sorted(place for step in batch.steps for place in step.places)
        assert places == list(range(texts * len(lengths)))
        return [[len(sequence.ids) for sequence in step.sequences] for step in batch.steps]

    def test_are_read_apart_where_padding_costs_more_than_a_step(self):
        # Together 8 x 40 tokens are computed, of which 4 x 30 are padding.
        assert self.steps((10, 40), 4, cost=100) == [[40] * 4, [10] * 4]

    def test_stay_together_where_it_costs_less(self):
        assert self.steps((10, 40), 4, cost=130) == [[10, 40] * 4]
        assert self.steps((40, 40), 4, cost=1) == [[40, 40] * 4]


class TestGroups:
    def test_all_lengths_are_alike_in_most_models(self):
        for architecture in ("llama", "gpt_oss", "gpt2", "gemma3_text"):
            group = rope_groups(tiny_decoder(architecture))
            assert len({group(length) for length in (1, 32, 33, 64, 200)}) == 1

    def test_dynamic_has_one_set_up_to_the_switch_and_one_for_each_length_beyond(self):
        group = rope_groups(tiny_decoder("llama", **DYNAMIC))
        assert group(1) == group(SWITCH - 1) == group(SWITCH)
        assert len({group(length) for length in (SWITCH, SWITCH + 1, SWITCH + 2, 200)}) == 4

    def test_longrope_has_two_sets(self):
        group = rope_groups(tiny_decoder("phi3", **LONGROPE))
        assert group(1) == group(SWITCH)
        assert group(SWITCH + 1) == group(200) != group(SWITCH)

    def test_a_rope_of_one_kind_of_layers_counts_too(self):
        ropes = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        }
        model = tiny_decoder("gemma3_text", max_position_embeddings=SWITCH, rope_parameters=ropes)
        group = rope_groups(model)
        assert group(1) == group(SWITCH)
        assert len({group(length) for length in (SWITCH, SWITCH + 1, 60)}) == 3


def everywhere(monkeypatch, name: str, replacement) -> None:
    """Take a function of ``rope`` away wherever the library has imported it."""
    original = getattr(rope, name)
    homes = [module for key, module in sys.modules.items() if key.split(".")[0] == "valuembed"]
    replaced = [home for home in homes if getattr(home, name, None) is original]
    assert len(replaced) >= 2
    for home in replaced:
        monkeypatch.setattr(home, name, replacement)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ropes")
    return {
        "dynamic": tiny_checkpoint(root / "dynamic", "llama", **DYNAMIC),
        "longrope": tiny_checkpoint(root / "longrope", "phi3", **LONGROPE),
    }


def load(folder):
    return valuembed.load(str(folder), "aligned_wva", layers="all", template=None, max_tokens=200, dtype="float32")


def letters(count: int) -> str:
    """A text of exactly so many tokens: no pair of these letters is in the tokenizer's vocabulary."""
    return "qz" * (count // 2) + "q" * (count % 2)


# At the switch, just beyond it, and well on either side; the longest is not next to the shortest on purpose.
LENGTHS = (10, SWITCH, 120, SWITCH - 1, SWITCH + 1, 60, 3)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


@pytest.fixture(scope="module")
def alone(folders):
    """Each text by a model that has seen no longer one: the shortest first, and never the same frequencies twice."""
    texts, vectors = [letters(length) for length in LENGTHS], {}
    for kind, folder in folders.items():
        model = load(folder)
        assert [len(model.tokenizer(text)["input_ids"]) for text in texts] == list(LENGTHS)
        rows = {length: model.encode([text])[0] for length, text in sorted(zip(LENGTHS, texts, strict=True))}
        vectors[kind] = np.stack([rows[length] for length in LENGTHS])
    return vectors


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
class TestRopeOfOneText:
    def test_is_what_a_fresh_model_gives(self, kind, folders, alone):
        for row in (1, 2, 4):
            fresh = load(folders[kind]).encode([letters(LENGTHS[row])])[0]
            assert apart(fresh, alone[kind][row]) < 1e-5

    def test_is_the_same_beside_longer_ones(self, kind, folders, alone):
        together = load(folders[kind]).encode([letters(length) for length in LENGTHS])
        assert apart(together, alone[kind]) < 1e-5

    def test_is_the_same_after_longer_ones(self, kind, folders, alone):
        model = load(folders[kind])
        for row in (2, 1, 5, 4, 3, 0, 6):
            assert apart(model.encode([letters(LENGTHS[row])])[0], alone[kind][row]) < 1e-5

    def test_would_change_without_groups(self, kind, folders, alone, monkeypatch):
        everywhere(monkeypatch, "rope_groups", lambda model: lambda length: None)
        # Nor may steps be so cheap that they part the lengths by chance.
        monkeypatch.setattr(scheduler, "STEP_COST_ON_CPU", 10_000)
        together = load(folders[kind]).encode([letters(length) for length in LENGTHS])
        # All texts up to the switch are pulled along by the longest.
        assert min(apart(together[row], alone[kind][row]) for row in (0, 1, 3)) > 0.01


def test_dynamic_rope_would_change_without_reset(folders, alone, monkeypatch):
    everywhere(monkeypatch, "reset_dynamic_rope", lambda model: None)
    model = load(folders["dynamic"])
    model.encode([letters(120)])
    # Transformers goes back by itself only below the switch; at it, and beyond, it keeps the frequencies of 120 tokens.
    assert apart(model.encode([letters(60)])[0], alone["dynamic"][LENGTHS.index(60)]) > 0.01
    assert apart(model.encode([letters(SWITCH)])[0], alone["dynamic"][LENGTHS.index(SWITCH)]) > 0.01
