"""The benchmark on real decoders, on a tiny random one: its STS scores are those of ``evaluate``, and a run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from valuembed.evaluation import evaluate
from valuembed.testing import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"dev": 40, "pairs": 30, "meta": 10}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts():
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import real
        import real_data
        import real_sts

        yield real, real_data, real_sts


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of models and of data: every STS set holds graded pairs of ours."""
    base = tmp_path_factory.mktemp("real")
    tiny_checkpoint(base / "models" / "gemma3", "gemma3_text", tokenizer="metaspace_bos")
    (base / "data").mkdir()
    for name in ("STSBenchmark.en.dev", "STSBenchmark.en.test", "STS13", "STS14", "STS12"):
        shutil.copy(ROOT / "examples" / "graded.jsonl", base / "data" / f"{name}.jsonl")
    rows = [json.loads(line) for line in (base / "data" / "STS12.jsonl").read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({**row, "split": ("test", "train")[n % 2]}) + "\n" for n, row in enumerate(rows))
    (base / "data" / "STS12.jsonl").write_text(text, encoding="utf-8")
    return base


def arguments(base: Path, *more: str) -> list[str]:
    given = ["--models", base / "models", "--data", base / "data", "--work", base / "work", "--decoders", "gemma3"]
    return [*map(str, given), "--size", "tiny", "--parts", "headline", "sts", "meta", "--device", "cpu", *more]


def test_a_run_is_as_evaluate_says_and_goes_on(scripts, places, monkeypatch):
    real, real_data, real_sts = scripts
    monkeypatch.setattr(real, "HERE", places)
    monkeypatch.setitem(real_data.SIZES, "tiny", real_data.Size(**SIZE))
    real.main(arguments(places))
    found = json.loads((places / "work" / "gemma3" / "scores.json").read_text(encoding="utf-8"))

    # The same pairs by mteb, as they are and without the mean.
    data = real_data.sts(places / "data", "STS13", SIZE["pairs"], places / "again")
    decoder = real_sts.Decoder.load(places / "models" / "gemma3", dtype="float32", device="cpu")
    dev = real_data.sts(places / "data", real_data.DEV, SIZE["dev"], places / "again")
    vectors: dict[str, list] = {}
    labels = ["va", "aligned_wva", "echo"]
    for group, of_group in decoder.groups(layers=False).items():
        kept = places / "again" / f"{group}.npz"
        wanted = [label for label in of_group if label in labels]
        if wanted:
            real_sts.read_set(decoder, group, wanted, dev, {}, kept, {}, vectors)
    texts = sorted({*dev.sentences1, *dev.sentences2})
    centred = real_sts.calibrations(decoder, real_sts.fitted(vectors)["centred"], "centred", texts)
    recipes = {label: decoder.readouts.recipes[label] for label in labels}
    made = evaluate(
        places / "models" / "gemma3",
        {**recipes, **{f"{label}, centred": recipes[label] for label in labels}},
        f"sts:{data.paths[0]}",
        calibrations={f"{label}, centred": centred[label] for label in labels},
        dtype="float32",
        device="cpu",
        progress=False,
    )
    for score in made.scores:
        label, _, way = score.method.partition(", ")
        assert found["sts"]["STS13"]["scores"][way or "raw"][label] == pytest.approx(score.score, abs=0.1), score.method

    headline = found["headline"]["STS14"]
    assert headline["pairs"] == 120
    assert set(headline["scores"]["centred"]) == set(real_sts.HEADLINE_ROWS)

    page = (places / "real.md").read_text(encoding="utf-8")
    assert "40 pairs of STSb dev and 30 of each" in " ".join(page.split())
    assert (places / "real-layers-gemma3.png").stat().st_size > 10_000
    assert (places / "real.png").stat().st_size > 10_000

    # A second run reads what is there.
    def nothing(*given, **more):
        raise AssertionError("computed again")

    monkeypatch.setattr(real_sts, "read_pair_windows", nothing)
    real.main(arguments(places))
    again = json.loads((places / "work" / "gemma3" / "scores.json").read_text(encoding="utf-8"))
    assert again["sts"] == found["sts"]
    assert again["headline"] == found["headline"]
    assert again["dev"] == found["dev"]
    assert again["meta"] == found["meta"]
    assert (places / "real.md").read_text(encoding="utf-8") == page


def test_samples_are_the_beginning_of_larger_ones(scripts, places):
    _, real_data, _ = scripts
    few, many = (real_data.sts(places / "data", "STS14", count, places / "again") for count in (10, 50))
    assert many.sentences1[:10] == few.sentences1
    # Of STS12 only the test split counts, half of the rows.
    assert len(real_data.sts(places / "data", "STS12", None, places / "again").scores) == 60


def test_ranges_of_layers(scripts):
    _, _, real_sts = scripts
    assert {name: real_sts.range_layers(name, tuple(range(12)), 12) for name in real_sts.RANGES} == {
        "last third": (8, 9, 10, 11),
        "last third without the last layer": (8, 9, 10),
        "0.65-0.90": (8, 9, 10),
        "last quarter": (9, 10, 11),
        "half": (6, 7, 8, 9, 10, 11),
        "half without the last layer": (6, 7, 8, 9, 10),
        "0.5-0.9": (6, 7, 8, 9, 10),
        "all": tuple(range(12)),
    }
