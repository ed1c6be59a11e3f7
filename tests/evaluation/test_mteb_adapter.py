"""Methods as encoders of mteb: the same vectors as alone, each text and each pass once, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from some_texts import some_texts

import valuembed
from valuembed.errors import OutputError, ReadingError
from valuembed.evaluation import mteb_adapter
from valuembed.evaluation.mteb_adapter import AsLoaded, MethodEncoder, SharedVectors, model_meta
from valuembed.execution.report import EncodeReport
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

mteb = pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")
PromptType = mteb.types.PromptType

TEXTS = some_texts(12)
VA = Recipe(signal="value", weights="mean")
METHODS = {"va": "va", "hidden": "hidden_mean", "wva": "wva", "eol": "prompt_eol"}


class Counting:
    """A source that notes what it was asked for; its vectors are the lengths of the texts, or not finite."""

    def __init__(self, groups, broken=(), by_role=False):
        self._groups = groups
        self.broken = broken
        self.by_role = by_role
        self.recipes = {name: VA for group in groups for name in group}
        self.calls = []
        self.report = None

    def widths(self):
        return dict.fromkeys(self.recipes, 2)

    def groups(self, role=None):
        return self._groups

    def encode(self, texts, *, names=None, role=None):
        self.calls.append((tuple(names), role, list(texts)))
        if bad := [name for name in names if name in self.broken]:
            raise ReadingError(f"not finite: {bad}")
        self.report = EncodeReport(len(texts), sum(map(len, texts)), 1, 0)
        return {
            name: np.array([[len(text), number] for text in texts], np.float32) for number, name in enumerate(names)
        }


@pytest.fixture(scope="module")
def readouts(folder):
    return MultiReadout.load(folder, METHODS)


@pytest.fixture
def shared(readouts):
    with SharedVectors(readouts) as vectors:
        yield vectors


class TestSharedVectors:
    @pytest.mark.parametrize("name", METHODS)
    def test_vectors_are_those_of_a_model_of_its_own(self, shared, folder, name):
        expected = valuembed.load(folder, METHODS[name]).encode(TEXTS)
        found = shared.get(name, TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)

    def test_one_pass_for_all_that_feed_the_same_tokens(self, readouts, monkeypatch):
        steps = []
        real = type(readouts.reader.model).forward

        def forward(self, *args, **kwargs):
            steps.append(1)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(type(readouts.reader.model), "forward", forward)
        with SharedVectors(readouts) as vectors:
            for name in METHODS:
                vectors.get(name, ["One.", "Two words."])
        # Two sets of tokens: the text alone, and PromptEOL's template.
        assert len(steps) == 2

    def test_each_text_is_computed_once(self):
        source = Counting([["a", "b"]])
        with SharedVectors(source, unit=False) as vectors:
            np.testing.assert_array_equal(vectors.get("a", ["xx", "y", "xx"])[:, 0], [2, 1, 2])
            # The longest first; only what is not there yet; in the order asked for.
            np.testing.assert_array_equal(vectors.get("b", ["y", "zzz", "xx"]), [[1, 1], [3, 1], [2, 1]])
            np.testing.assert_array_equal(vectors.get("a", ["zzz", "y"]), [[3, 0], [1, 0]])
        assert source.calls == [(("a", "b"), None, ["xx", "y"]), (("a", "b"), None, ["zzz"])]

    def test_only_those_with_the_task_before_them_are_computed(self):
        source = Counting([["a", "b", "c"]])
        with SharedVectors(source) as vectors:
            vectors.start(["a", "c"])
            vectors.get("c", ["x"])
            vectors.done("c")
            vectors.get("a", ["x", "y"])
        assert [(names, texts) for names, _, texts in source.calls] == [(("a", "c"), ["x"]), (("a",), ["y"])]

    def test_a_new_task_starts_from_nothing(self):
        source = Counting([["a"]])
        with SharedVectors(source) as vectors:
            vectors.get("a", ["x"])
            vectors.start(["a"])
            vectors.get("a", ["x"])
        assert len(source.calls) == 2

    def test_a_method_that_is_done_can_still_be_asked(self):
        source = Counting([["a", "b"]])
        with SharedVectors(source, unit=False) as vectors:
            vectors.get("a", ["xx"])
            vectors.done("a")
            assert vectors.get("a", ["xx"])[0, 0] == vectors.get("b", ["xx"])[0, 0] == 2
        assert [names for names, _, _ in source.calls] == [("a", "b"), ("a",)]

    def test_roles_share_where_nothing_tells_them_apart(self):
        plain, apart = Counting([["a"]]), Counting([["a"]], by_role=True)
        for source in (plain, apart):
            with SharedVectors(source) as vectors:
                for role in ("query", "document", "query"):
                    vectors.get("a", ["x"], role)
        assert [role for _, role, _ in plain.calls] == [None]
        assert [role for _, role, _ in apart.calls] == ["query", "document"]

    def test_passes_keep_to_their_own_files(self):
        with SharedVectors(Counting([["a"], ["b"]], by_role=True), unit=False) as vectors:
            vectors.get("a", ["x"], "query")
            vectors.get("b", ["yy"], "query")
            vectors.done("a")
            assert vectors.get("b", ["zzz"], "document")[0, 0] == 3
            assert vectors.get("b", ["yy"], "query")[0, 0] == 2

    def test_numbers_that_are_not_finite_cost_one_method_only(self):
        source = Counting([["a", "b", "c"]], broken=("b",))
        with SharedVectors(source, unit=False) as vectors:
            assert vectors.get("a", ["xx"])[0, 0] == 2
            with pytest.raises(ReadingError, match=r"not finite: \['b'\]"):
                vectors.get("b", ["xx"])
            assert vectors.get("c", ["xx", "y"])[1, 0] == 1
        assert [names for names, _, _ in source.calls] == [("a", "b", "c"), ("a",), ("b",), ("c",)]

    def test_memory_stays_flat(self, monkeypatch):
        monkeypatch.setattr(mteb_adapter, "TEXTS_PER_CHUNK", 300)
        source = Counting([["a", "b"]])
        texts = [f"{number}" for number in range(700)]
        with SharedVectors(source, unit=False) as vectors:
            np.testing.assert_array_equal(vectors.get("b", texts)[:, 0], [len(text) for text in texts])
        assert [len(texts) for _, _, texts in source.calls] == [300, 300, 100]
        # By bytes: 2 methods 2 wide are 16 bytes a text.
        monkeypatch.setattr(mteb_adapter, "BYTES_PER_CHUNK", 16 * 260)
        source.calls.clear()
        with SharedVectors(source) as vectors:
            vectors.get("b", texts)
        assert [len(texts) for _, _, texts in source.calls] == [260, 260, 180]
        # By characters: 6 + 5 + 4 reach 15, and 3 + 2 + 1 are the rest.
        monkeypatch.setattr(mteb_adapter, "CHARACTERS_PER_CHUNK", 15)
        source.calls.clear()
        with SharedVectors(source) as vectors:
            vectors.get("b", ["x" * length for length in (1, 2, 3, 4, 5, 6)])
        assert [len(texts) for _, _, texts in source.calls] == [3, 3]

    def test_counts_what_served_each_method(self):
        source = Counting([["a", "b"], ["c"]])
        with SharedVectors(source) as vectors:
            vectors.get("a", ["xx", "y"])
            vectors.get("a", ["zzz"])
            spent = vectors.spent
        assert (spent["a"].texts, spent["a"].tokens, spent["a"].truncated) == (3, 6, 2)
        assert spent["a"] == spent["b"]
        assert spent["c"].texts == spent["c"].seconds == 0

    def test_an_interrupted_chunk_leaves_no_trace(self, monkeypatch):
        source = Counting([["a", "b"]])
        with SharedVectors(source, unit=False) as vectors:
            vectors.get("a", ["xx"])
            real = vectors._append

            def interrupted(made, name, rows):
                if name == "b":
                    raise KeyboardInterrupt
                real(made, name, rows)

            monkeypatch.setattr(vectors, "_append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                vectors.get("a", ["zzz"])
            monkeypatch.undo()
            np.testing.assert_array_equal(vectors.get("b", ["y", "xx"])[:, 0], [1, 2])
            np.testing.assert_array_equal(vectors.get("a", ["y", "xx"])[:, 0], [1, 2])

    def test_nothing_is_left_on_disk(self, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with SharedVectors(Counting([["a", "b"]])) as vectors:
            vectors.get("a", ["x"])
            assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
            vectors.done("a")
            assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_says_what_to_do(self, monkeypatch):
        def full(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

        with SharedVectors(Counting([["a"]])) as vectors:
            monkeypatch.setattr(Path, "open", full)
            with pytest.raises(OutputError, match=r"vectors of 1 text do not fit into .*: No space left.*; set TMPDIR"):
                vectors.get("a", ["x"])

    def test_no_texts(self, shared):
        assert shared.get("va", []).shape == (0, shared.source.widths()["va"])
        assert shared.get("eol", []).dtype == np.float32


class TestAsLoaded:
    def test_gives_what_encode_gives(self, folder):
        template = {"query": "find: {text}", "document": "{text}", "default": "say {text}"}
        model = valuembed.load(folder, "va", template=template, normalize=False)
        source = AsLoaded(model, "mine")
        with SharedVectors(source, unit=False) as vectors:
            for role, encode in {
                "query": model.encode_query,
                "document": model.encode_document,
                None: model.encode,
            }.items():
                np.testing.assert_allclose(vectors.get("mine", TEXTS, role), encode(TEXTS), atol=1e-5)
        assert source.widths() == {"mine": model.encode("One.").shape[0]}

    @pytest.mark.parametrize(
        "prompts",
        [{"query": "Find: "}, {"document": "Read: "}, {"passage": "Read: "}, {"default": "Say: ", "query": ""}],
    )
    def test_roles_have_the_prompts_of_the_model(self, folder, prompts):
        model = valuembed.load(folder, "va")
        model.prompts, model.default_prompt_name = prompts, "default" if "default" in prompts else None
        by_role = {"query": model.encode_query, "document": model.encode_document, None: model.encode}
        assert not np.allclose(by_role["query"](TEXTS), by_role["document"](TEXTS), atol=1e-3)
        with SharedVectors(AsLoaded(model, "mine"), unit=False) as vectors:
            for role, encode in by_role.items():
                np.testing.assert_allclose(vectors.get("mine", TEXTS, role), encode(TEXTS), atol=1e-5)

    def test_counts_instead_of_warning(self, folder):
        source = AsLoaded(valuembed.load(folder, "va", max_tokens=5), "mine")
        with SharedVectors(source, unit=False) as vectors:
            vectors.get("mine", ["word " * 20, " ", "One."])
            assert (vectors.spent["mine"].texts, vectors.spent["mine"].truncated) == (3, 1)


class TestMethodEncoder:
    @pytest.fixture
    def encoder(self, shared):
        return MethodEncoder(shared, "wva", model_meta("tiny", "abc"))

    def test_is_an_encoder_of_mteb(self, encoder):
        from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

        assert isinstance(encoder, EncoderProtocol)
        assert not isinstance(encoder, (CrossEncoderProtocol, SearchProtocol))

    def test_takes_a_data_loader(self, encoder, folder):
        batches = [{"text": TEXTS[:5]}, {"text": TEXTS[5:]}]
        found = encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default", batch_size=32)
        np.testing.assert_allclose(found, valuembed.load(folder, "wva").encode(TEXTS), atol=2e-6)

    @pytest.mark.parametrize("prompt_type", [PromptType.query, PromptType.document, None])
    def test_role_reaches_the_templates(self, folder, prompt_type):
        recipe = Recipe(signal="value", weights="mean", query_template="find: {text}", document_template="read: {text}")
        readouts = MultiReadout.load(folder, {"mine": recipe})
        model = valuembed.load(folder, recipe)
        encode = {"query": model.encode_query, "document": model.encode_document}.get(prompt_type, model.encode)
        with SharedVectors(readouts) as vectors:
            encoder = MethodEncoder(vectors, "mine", model_meta("tiny", "abc"))
            found = encoder.encode([{"text": TEXTS}], prompt_type=prompt_type)
        np.testing.assert_allclose(found, encode(TEXTS), atol=2e-6)

    def test_similarity_is_the_cosine(self, encoder):
        # At 45 and at 0 degrees; lengths do not matter.
        first, second = np.array([[1.0, 1.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [5.0, 0.0]])
        half = 0.5**0.5
        np.testing.assert_allclose(encoder.similarity(first, second), [[half, half], [1, 1]], atol=1e-6)
        np.testing.assert_allclose(encoder.similarity_pairwise(first, second), [half, 1], atol=1e-6)

    def test_results_are_filed_by_model_and_fingerprint(self, encoder):
        assert (encoder.mteb_model_meta.name, encoder.mteb_model_meta.revision) == ("local/tiny", "abc")
        assert model_meta("Qwen/Qwen3-0.6B", "abc").name == "Qwen/Qwen3-0.6B"
        assert encoder.mteb_model_meta.similarity_fn_name is mteb.models.model_meta.ScoringFunction.COSINE


# mteb's own: it copies a tensor in a way that torch advises against.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
def test_every_compatible_mock_task_gives_a_result(readouts):
    """mteb hands errors back instead of raising them, so each result is looked at."""
    from mteb.mocks.mock_run import get_compatible_mock_tasks
    from mteb.results.task_result import TaskError, TaskResult

    with SharedVectors(readouts) as vectors:
        encoder = MethodEncoder(vectors, "va", model_meta("tiny", "abc"))
        found = mteb.mock_run(encoder)
    failed = {name: result.exception for name, result in found.items() if isinstance(result, TaskError)}
    assert failed == {}
    passed = {name for name, result in found.items() if isinstance(result, TaskResult)}
    assert passed == {task.metadata.name for task in get_compatible_mock_tasks(encoder)}
    assert len(passed) >= 20
