"""Next-token probing: a probe that finds what is there and nothing else, on positions of documents it has not seen."""

from __future__ import annotations

import json
import math
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from some_texts import WORDS

import valuembed
from valuembed.analysis.segments import Documents
from valuembed.analysis.token_signals import AT_TOKEN, TokenSignal
from valuembed.errors import InputError, LayerError, ReadingError
from valuembed.models.multi_readout import MultiReadout
from valuembed.research import linear_probe, next_token_probe
from valuembed.research.next_token_probe import RandomProjection, SampledPositions, draw, probe_next_token
from valuembed.tokenization.tokenizer import TokenSequence

pytestmark = pytest.mark.slow

SIGNAL = TokenSignal("value", AT_TOKEN, 0)


def write(path, count, words=60):
    generator = np.random.default_rng(7)
    path.write_text("".join(" ".join(generator.choice(WORDS, size=words)) + "\n" for _ in range(count)))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "documents.txt", 80)


@pytest.fixture(scope="module")
def reader(folder):
    return MultiReadout.load(folder, {"va": "va"}).reader


@pytest.fixture(scope="module")
def found(folder, corpus):
    return probe_next_token(folder, corpus, positions=1200, progress=False)


def layers_of(found):
    return {signal: sorted(of_signal) for signal, of_signal in found.scores.items()}


class TestProjection:
    def test_one_large_feature_does_not_drown_the_rest(self):
        vectors = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
        vectors[:, 3] *= 1e4
        made = RandomProjection(20)(SIGNAL, vectors)
        # Orthonormal directions of features with deviation 1: no direction of the result is much longer than another.
        singular = torch.linalg.svdvals(made)
        assert singular[0] / singular[-1] < 2

    def test_scales_are_those_of_the_first_positions(self):
        project = RandomProjection(3)
        first = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        project(SIGNAL, first)
        # A shift by 7 deviations of all features stays: each row moves by 7 * sqrt(3).
        moved = project(SIGNAL, first + 7 * first.std(dim=0, correction=0)) - project(SIGNAL, first)
        torch.testing.assert_close(moved.norm(dim=1), torch.full((50,), 7 * math.sqrt(3)))

    def test_directions_are_orthonormal_and_shared_by_width(self):
        project = RandomProjection(4, seed=3)
        eye = torch.cat((torch.eye(9), -torch.eye(9)))
        # Mean 0 and deviation 1/3 for each feature of these 18 rows.
        one, other = project(SIGNAL, eye), project(TokenSignal("hidden", AT_TOKEN, None), eye)
        assert torch.equal(one, other)
        torch.testing.assert_close((one[:9].T @ one[:9]) / 9, torch.eye(4))
        assert not torch.allclose(RandomProjection(4, seed=4)(SIGNAL, eye), one)

    def test_a_constant_feature_is_harmless(self):
        made = RandomProjection(2)(SIGNAL, torch.tensor([[5.0, 1.0], [5.0, 3.0]]))
        assert bool(made.isfinite().all())


class TestDraw:
    def test_positions_have_a_next_token_and_are_the_texts_own(self, corpus, reader):
        drawn = draw(Documents(corpus), reader, 1500)
        assert len(drawn) == 1500
        for row, positions in zip(drawn.rows, drawn.positions, strict=True):
            start, end = row.span
            assert start == 1  # the BOS is not the text's
            assert positions == sorted(set(positions))
            assert start <= positions[0] <= positions[-1] < end - 1
            assert len(row.ids) <= next_token_probe.CONTEXT
        assert {len(positions) for positions in drawn.positions[:-1]} == {next_token_probe.PER_DOCUMENT}

    def test_reads_no_further_than_needed(self, corpus, reader):
        documents = Documents(corpus)
        assert len(draw(documents, reader, 1000).rows) == 50
        assert documents.read == 64

    def test_a_documents_positions_do_not_depend_on_how_many_are_asked_for(self, corpus, reader):
        fewer, more = (draw(Documents(corpus), reader, count) for count in (1000, 1400))
        assert fewer.positions == more.positions[:50]
        assert draw(Documents(corpus), reader, 1000, seed=1).positions != fewer.positions

    def test_documents_without_a_next_token_are_passed_over(self, tmp_path, reader):
        path = tmp_path / "a.txt"
        path.write_text("a\n" * 30 + write(tmp_path / "b.txt", 60).read_text())
        assert len(draw(Documents(path), reader, 1000).rows) == 50

    def test_next_tokens(self):
        rows = [TokenSequence([9, 5, 6, 7], (1, 4)), TokenSequence([9, 3, 4], (1, 3))]
        drawn = SampledPositions(rows, [[1, 2], [1]])
        assert drawn.next_tokens([1, 0]) == [4, 6, 7]

    def test_every_fifth_document_is_held_out(self):
        rows = [TokenSequence([number, 0], (0, 2)) for number in range(11)]
        train, held_out = SampledPositions(rows, [[0]] * 11).split()
        assert [row.ids[0] for row in held_out.rows] == [4, 9]
        assert [row.ids[0] for row in train.rows] == [0, 1, 2, 3, 5, 6, 7, 8, 10]


class TestProbe:
    def test_every_layer_of_the_four_signals(self, found):
        assert layers_of(found) == {signal: [0, 1, 2, 3] for signal in next_token_probe.TOKEN_SIGNALS.values()}
        assert list(found.final) == ["hidden state at the token", "hidden states of the prefix"]
        figures = [figures for of_signal in found.scores.values() for figures in of_signal.values()]
        assert all(0 <= top1 <= top5 <= 100 and loss > 0 for top1, top5, loss in figures)

    def test_says_what_was_read(self, found):
        details = found.details
        assert (details["positions"], details["positions_trained"], details["positions_held_out"]) == (1200, 960, 240)
        assert (details["documents"], details["documents_held_out"], details["width"]) == (60, 12, 16)
        assert found.notes[0].startswith("linear softmax on 960 positions, scored on 240 of other documents; 60 docu")

    def test_equal_width_is_the_narrowest_or_what_is_asked(self, folder, corpus, found):
        # g*d = 16 and m = 32.
        assert found.details["width"] == 16
        narrow = probe_next_token(folder, corpus, positions=1000, width=5, layers=[1], progress=False)
        assert narrow.details["width"] == 5
        assert layers_of(narrow) == {signal: [1] for signal in next_token_probe.TOKEN_SIGNALS.values()}

    def test_the_same_every_time(self, folder, corpus, found):
        assert probe_next_token(folder, corpus, positions=1200, progress=False).scores == found.scores

    def test_a_token_that_decides_the_next_is_read_at_the_token_and_not_from_the_prefix(
        self, folder, tmp_path, monkeypatch
    ):
        # Letters that are one token with the blank before them, in a circle; each document starts somewhere.
        tokens = valuembed.load(folder).reader.processor.get_vocab()
        letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if f"\u0120{letter}" in tokens]
        assert len(letters) > 8
        path = tmp_path / "circle.txt"
        path.write_text("".join(" ".join((letters * 9)[start : start + 50]) + "\n" for start in range(8)) * 19)
        monkeypatch.setattr(linear_probe, "EPOCHS", 6)
        found = probe_next_token(folder, path, positions=3000, layers=[0], progress=False)
        top1 = {signal: of_signal[0][0] for signal, of_signal in found.scores.items()}
        assert found.baselines["most frequent"][0] < 60
        assert top1["value at the token"] > 90
        assert top1["hidden state at the token"] > 90
        assert top1["values of the prefix"] < top1["value at the token"] - 10

    def test_fewer_positions_than_asked_for_are_used_and_said(self, folder, corpus):
        found = probe_next_token(folder, corpus, positions=9000, layers=[0], progress=False)
        assert found.details["positions"] == 1600
        assert "(9,000 were asked for: the corpus has no more)" in found.notes[0]

    def test_a_folder_that_was_saved_cut(self, folder, corpus, tmp_path):
        valuembed.load(folder, "va", layers=[1]).save(str(tmp_path))
        found = probe_next_token(tmp_path, corpus, positions=1000, progress=False)
        assert sorted(found.scores["value at the token"]) == [0, 1]
        assert found.final == {}

    def test_writes_table_chart_and_json(self, folder, corpus, tmp_path):
        found = probe_next_token(folder, corpus, positions=1000, layers=[0, 2], output=tmp_path / "x", progress=False)
        names = {path.name for path in (tmp_path / "x").iterdir()}
        assert names == {"next-token.json", "next-token.md", "next-token.png"}
        assert json.loads((tmp_path / "x" / "next-token.json").read_text())["details"]["seed"] == 0
        assert "| final norm | - | - |" in found.to_markdown()


class TestEndedEarly:
    CHOICES = MappingProxyType({"positions": 1000, "layers": [0, 1], "progress": False})

    @pytest.fixture
    def trained(self, monkeypatch):
        """Counts the probes that are trained, and ends the work at the one after ``most``."""
        trained, real = SimpleNamespace(count=0, most=math.inf), next_token_probe.train_softmax

        def fit(*arguments):
            if trained.count >= trained.most:
                raise KeyboardInterrupt
            trained.count += 1
            return real(*arguments)

        monkeypatch.setattr(next_token_probe, "train_softmax", fit)
        return trained

    def test_a_later_run_takes_over_what_is_finished(self, folder, corpus, tmp_path, trained):
        pytest.importorskip("matplotlib")
        trained.most = 4
        with pytest.raises(KeyboardInterrupt):
            probe_next_token(folder, corpus, output=tmp_path, **self.CHOICES)
        kept = json.loads((tmp_path / "next-token.json").read_text())
        # Four signals at two layers, and two after the final norm.
        assert kept["unfinished"] == "Incomplete: ended after 4 of 10 probes"
        assert "Incomplete: ended after 4 of 10 probes" in (tmp_path / "next-token.md").read_text()
        assert (tmp_path / "next-token.png").exists()
        trained.most = math.inf
        whole = probe_next_token(folder, corpus, output=tmp_path, **self.CHOICES)
        assert (trained.count, whole.unfinished) == (10, "")
        alone = probe_next_token(folder, corpus, **self.CHOICES)
        assert (whole.scores, whole.final) == (alone.scores, alone.final)
        assert json.loads((tmp_path / "next-token.json").read_text())["unfinished"] == ""

    def test_other_inputs_or_settings_are_trained_anew(self, folder, corpus, tmp_path, trained):
        pytest.importorskip("matplotlib")
        choices = {**self.CHOICES, "layers": [1]}
        probe_next_token(folder, corpus, output=tmp_path, **choices)
        probe_next_token(folder, corpus, output=tmp_path, **choices)
        assert trained.count == 6
        probe_next_token(folder, corpus, output=tmp_path, **{**choices, "positions": 1100})
        assert trained.count == 12
        probe_next_token(folder, corpus, output=tmp_path, seed=1, **choices)
        assert trained.count == 18

    def test_a_file_that_is_none_of_ours_is_no_help(self, folder, corpus, tmp_path, trained):
        pytest.importorskip("matplotlib")
        (tmp_path / "next-token.json").write_text('{"details": []}')
        probe_next_token(folder, corpus, output=tmp_path, **{**self.CHOICES, "layers": [1]})
        assert trained.count == 6


class TestErrors:
    def test_too_few_positions_in_the_corpus(self, folder, tmp_path):
        path = write(tmp_path / "a.txt", 7)
        message = (
            r"a\.txt has 140 positions with a next token, 20 of each of 7 documents at most; a probe needs 1,000: give"
        )
        with pytest.raises(InputError, match=message):
            probe_next_token(folder, path, progress=False)

    @pytest.mark.parametrize(("name", "number", "least"), [("positions", 999, 1000), ("width", 0, 1)])
    def test_too_few_asked_for(self, folder, corpus, name, number, least):
        with pytest.raises(InputError, match=f"{name}={number} has to be at least {least}"):
            probe_next_token(folder, corpus, **{name: number})

    def test_no_such_file(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"input .*none\.txt does not exist"):
            probe_next_token(folder, tmp_path / "none.txt")

    def test_unknown_layer(self, folder, corpus):
        with pytest.raises(LayerError, match="layers"):
            probe_next_token(folder, corpus, layers=[4])

    def test_not_finite(self, folder, corpus, monkeypatch):
        real, spoilt = next_token_probe.read_tokens, TokenSignal("hidden", AT_TOKEN, 1)

        def read(*arguments, **options):
            for rows, signals in real(*arguments, **options):
                yield rows, signals | {spoilt: signals[spoilt] / 0}

        monkeypatch.setattr(next_token_probe, "read_tokens", read)
        with pytest.raises(ReadingError, match="hidden state at the token, layer 1: some vectors are not finite"):
            probe_next_token(folder, corpus, positions=1000, layers=[1], progress=False)
