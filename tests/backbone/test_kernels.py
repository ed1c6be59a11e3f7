"""Attention kernels: the configuration's wish gives way where it cannot run, the user's is an error."""

from __future__ import annotations

import json

import pytest

import valuembed
from valuembed.backbone import kernels
from valuembed.backbone.kernels import choose_kernel
from valuembed.errors import RecipeError
from valuembed.testing import tiny_checkpoint, tiny_config

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


@pytest.fixture
def installed(monkeypatch):
    """Whether the packages with flash kernels are there."""

    def install(there):
        rows = {name: (lambda: there, package) for name, (_, package) in kernels._FLASH.items()}
        monkeypatch.setattr(kernels, "_FLASH", rows)

    return install


def config(kernel=None):
    made = tiny_config("qwen3")
    made._attn_implementation = kernel
    return made


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("kernel", ["flash_attention_2", "kernels-community/flash-attn"])
def test_the_configurations_wish_gives_way_with_one_line(tmp_path, caplog, key, kernel):
    plain = valuembed.load(tiny_checkpoint(tmp_path), "va", device="cpu").encode("a b")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: kernel}))
    caplog.clear()
    model = valuembed.load(tmp_path, "va", device="cpu")
    assert model.reader.model.config._attn_implementation == "valuembed_sdpa"
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"the configuration asks for the attention kernel '{kernel}', which ")
    assert told[0].endswith(": using sdpa")
    assert abs(model.encode("a b") - plain).max() < 1e-6


@pytest.mark.parametrize("kernel", [None, "eager", "sdpa", "flex_attention"])
def test_what_can_run_is_kept(kernel, caplog):
    assert choose_kernel(config(kernel), None, "cpu") == kernel
    assert choose_kernel(config("flash_attention_2"), kernel or "eager", "cpu") == (kernel or "eager")
    assert choose_kernel(config(), {"": "eager"}, "cpu") == "eager"
    assert caplog.records == []


@pytest.mark.parametrize("kernel", FLASH)
def test_flash_attention(installed, kernel):
    installed(True)
    assert choose_kernel(config(kernel), None, "cuda") == kernel
    assert choose_kernel(config(), kernel, "cuda:0") == kernel
    assert choose_kernel(config(kernel), None, "cpu") is None
    installed(False)
    assert choose_kernel(config(kernel), None, "cuda") is None
    with pytest.raises(
        RecipeError, match=r"needs the package flash-attn.*, which is not installed; what can be used here"
    ):
        choose_kernel(config(), kernel, "cuda")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("flash_attention_2", "does not run on a CPU; what can be used here: eager, sdpa, flex_attention"),
        (
            "flash_attn_2",
            "is none that values can be read with; did you mean 'flash_attention_2'? what can be used here: ",
        ),
        ("spda", "is none that values can be read with; did you mean 'sdpa'? what can be used here: eager, sdpa, "),
        ("kernels-community/flash-attn", "is none that values can be read with; what can be used here: eager, sdpa, "),
        ("paged|eager", "is none that values can be read with; "),
        (5, "is none that values can be read with; "),
        ({"text_config": "eager"}, "is none that values can be read with; "),
    ],
)
def test_the_users_wish_is_an_error_that_lists_what_can_run(folder, kernel, message):
    with pytest.raises(RecipeError) as raised:
        valuembed.load(folder, device="cpu", model_kwargs={"attn_implementation": kernel})
    assert str(raised.value).startswith(f"model_kwargs: attn_implementation={kernel!r} {message}")
