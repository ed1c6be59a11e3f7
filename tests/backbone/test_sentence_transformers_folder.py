"""Settings of folders saved by plain sentence-transformers: prompts and limits are taken over, modules named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from typer.testing import CliRunner
from watching import fake_hub

import valuembed
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.checkpoints.sentence_transformers_folder import SavedSettings, saved_settings
from valuembed.cli.main import app
from valuembed.errors import CheckpointError, UnusedModulesWarning
from valuembed.testing import tiny_checkpoint

PROMPTS = {"query": "Instruct: find\nQuery: ", "document": "", "topic": "the topic: "}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a pooling, as plain sentence-transformers saves it."""
    place = tmp_path_factory.mktemp("plain")
    transformer = Transformer(str(tiny_checkpoint(place / "decoder")), max_seq_length=64)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken")]
    model = SentenceTransformer(
        modules=modules, prompts=PROMPTS, default_prompt_name="topic", similarity_fn_name="dot", device="cpu"
    )
    model.save_pretrained(str(place / "saved"), create_model_card=False)
    return place / "saved"


def copy(saved: Path, folder: Path, **settings: Any) -> Path:
    """The folder again, with other settings."""
    folder.mkdir()
    for file in saved.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    written = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(written | settings), "utf-8")
    return folder


def test_prompts_default_limit_and_similarity_are_taken_over_and_the_pooling_is_named(saved):
    with pytest.warns(UnusedModulesWarning, match="saved by sentence-transformers with the modules Pooling, which are"):
        model = valuembed.load(saved, "va")
    assert model.prompts == PROMPTS
    assert (model.default_prompt_name, model.similarity_fn_name, model.max_seq_length) == ("topic", "dot", 64)
    stripped = valuembed.load(saved.parent / "decoder", "va", max_tokens=64)
    for ours, plain in (
        (model.encode(["a text"]), stripped.encode(["a text"], prompt=PROMPTS["topic"])),
        (model.encode_query(["a text"]), stripped.encode_query(["a text"], prompt=PROMPTS["query"])),
        (model.encode_document(["a text"]), stripped.encode_document(["a text"], prompt="")),
    ):
        assert np.allclose(ours, plain, atol=1e-6)


def test_what_is_asked_for_wins(saved):
    with pytest.warns(UnusedModulesWarning):
        model = valuembed.load(saved, "va", prompts={"query": "ours: ", "other": "o: "}, max_tokens=32)
    assert model.prompts == {**PROMPTS, "query": "ours: ", "other": "o: "}
    assert model.max_seq_length == 32


def test_a_limit_is_read_where_older_releases_wrote_it(saved, tmp_path):
    folder = copy(saved, tmp_path / "copy")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": false}', "utf-8")
    with pytest.warns(UnusedModulesWarning, match="limit of 48 tokens"):
        assert valuembed.load(folder, "va").max_seq_length == 48


def test_saving_keeps_what_was_taken_over_and_warns_no_more(saved, tmp_path):
    with pytest.warns(UnusedModulesWarning):
        model = valuembed.load(saved, "va")
    model.save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = valuembed.load(tmp_path)
    assert (again.prompts, again.default_prompt_name, again.max_seq_length) == (PROMPTS, "topic", 64)


def test_a_hub_id_is_read_alike(saved, tmp_path):
    with fake_hub("someone/tiny", saved) as hub, pytest.warns(UnusedModulesWarning, match="'someone/tiny' was saved"):
        model = valuembed.load("someone/tiny", "va", cache_folder=str(tmp_path))
    assert model.prompts == PROMPTS
    assert {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"} <= hub.sent


def test_a_hub_id_of_a_plain_decoder_is_asked_for_modules_only(saved, tmp_path):
    with fake_hub("someone/tiny", saved.parent / "decoder") as hub:
        assert saved_settings(locate("someone/tiny", cache_folder=str(tmp_path))) == SavedSettings()
    assert hub.asked == {"modules.json"}


def test_info_and_the_command_line_show_them(saved):
    found = valuembed.info(saved, "va")
    assert found.prompts == {name: prompt for name, prompt in PROMPTS.items() if prompt}
    assert (found.default_prompt_name, found.not_used) == ("topic", ("Pooling",))
    shown = CliRunner().invoke(app, ["info", str(saved), "--method", "va"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for line in ("query: Instruct: find Query:", "topic (default): the topic:", "beside the decoder: Pooling"):
        assert line in shown.output
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        used = CliRunner().invoke(app, ["similarity", "a", "b", "--model", str(saved)])
    assert used.exit_code == 0
    assert used.stderr.count("warning: ") == 1
    assert "which are not used: vectors are read from attention instead; taken over: prompt 'query'" in used.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": ["a"]}, "is damaged: AttributeError"),
        ({"prompts": {"query": 3}}, "the prompt 'query' is no text"),
        (
            {"default_prompt_name": "nobody"},
            "names the default prompt 'nobody', and holds 'document', 'query', 'topic'",
        ),
    ],
)
def test_damaged_settings_are_named(saved, tmp_path, settings, says):
    folder = copy(saved, tmp_path / "copy", **settings)
    with pytest.raises(CheckpointError, match=f"config_sentence_transformers.json.*{says}"):
        valuembed.load(folder, "va")


def test_damaged_files_are_named(saved, tmp_path):
    folder = copy(saved, tmp_path / "copy")
    (folder / "config_sentence_transformers.json").write_text("[]", "utf-8")
    with pytest.raises(
        CheckpointError, match=r"config_sentence_transformers\.json is damaged: .*holds list, not an obj"
    ):
        valuembed.load(folder, "va")
    (folder / "modules.json").write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged: JSONDecodeError"):
        valuembed.load(folder, "va")


def test_settings_of_no_use_are_passed_over(saved, tmp_path):
    folder = copy(
        saved, tmp_path / "copy", similarity_fn_name="maxsim", prompts={"query": None}, default_prompt_name=None
    )
    settings = saved_settings(locate(folder))
    assert (settings.similarity_fn_name, settings.prompts) == (None, {"query": ""})
