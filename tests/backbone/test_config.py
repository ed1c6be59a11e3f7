"""Configurations that cannot be used: one line, whatever a family's own code makes of them."""

from __future__ import annotations

import json

import pytest
import transformers
from running import fails

from valuembed.backbone.checkpoints.config import read_config
from valuembed.backbone.checkpoints.location import locate
from valuembed.cli import main as cli
from valuembed.errors import CheckpointError
from valuembed.testing import tiny_config


def checkpoint(folder, **settings):
    written = {**tiny_config("qwen3").to_dict(), **settings}
    (folder / "config.json").write_text(json.dumps(written))
    return locate(folder)


def test_a_model_type_that_is_too_new_names_the_version(tmp_path):
    found = checkpoint(tmp_path, model_type="brandnew9", architectures=["BrandNew9ForCausalLM"])
    message = (
        rf"transformers {transformers.__version__} does not know its model_type 'brandnew9'; a newer "
        r"transformers may know it, or code that comes with it \(trust_remote_code\)$"
    )
    with pytest.raises(CheckpointError, match=message):
        read_config(found)
    assert cli.app.registered_commands
    assert "does not know its model_type 'brandnew9'; a newer" in fails("info", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": "x"}, "Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected int"),
        ({"vocab_size": None}, "Validation error for field 'vocab_size': TypeError: Field 'vocab_size' expected int"),
        ({"model_type": {"a": 1}}, "its configuration cannot be read: TypeError: "),
        ({"quantization_config": "gptq"}, "its configuration cannot be read: AttributeError: "),
        (
            {"dtype": "float99"},
            "config.json names a dtype that torch does not know (module 'torch' has no attribute",
        ),
        ({"dtype": 5}, "its configuration names the precision 5, which is none"),
    ],
)
def test_values_that_mean_nothing(tmp_path, settings, message):
    with pytest.raises(CheckpointError) as raised:
        read_config(checkpoint(tmp_path, **settings))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_family_that_needs_a_package(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ImportError("\nThis family requires the timm library.\nInstall it with pip.\n")

    monkeypatch.setattr("valuembed.backbone.checkpoints.config.AutoConfig.from_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read: ImportError: This family requires the timm library\.$"):
        read_config(checkpoint(tmp_path))
