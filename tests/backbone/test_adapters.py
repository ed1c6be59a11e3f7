"""Adapters: found, put on a cut decoder whole or not at all, and saved so that loading gives the same vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from saved_models import assert_same_vectors, assert_saved_alike
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM
from watching import COMMIT, fake_hub

from valuembed.errors import CheckpointError, OutputError
from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.models.model_info import info

# peft's PeftModel asks transformers for a property under its old name.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TEXTS = ["the sun rose", "over a quiet town while nobody watched", "rain"]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def train(model: torch.nn.Module, seed: int = 0) -> None:
    """Stand in for a training run: move every weight that an adapter brings."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.3 * noise.to(parameter.dtype)


def add_adapter(model: ValueEncoder, name: str | None = None, seed: int = 0, **settings: Any) -> None:
    settings = {"r": 2, "target_modules": ["v_proj", "o_proj"], **settings}
    model.add_adapter(LoraConfig(**settings), **({"adapter_name": name} if name else {}))
    train(model, seed)


def test_info_tells_the_precision_that_an_adapter_was_saved_in(tmp_path: Path) -> None:
    model = load("bundled", "va", dtype="float32")
    add_adapter(model)
    model.save_pretrained(str(tmp_path))
    assert info(tmp_path).dtype == "float32"
    assert load(tmp_path).dtype == torch.float32


def difference(one: Any, other: Any) -> float:
    return float(np.abs(one.encode(TEXTS) - other.encode(TEXTS)).max())


def reload_both_ways(model: ValueEncoder, saved: Path) -> ValueEncoder:
    model.save_pretrained(str(saved))
    again = load(saved)
    assert_saved_alike(model, again, TEXTS)
    plain = SentenceTransformer(str(saved), trust_remote_code=True)
    assert type(plain) is SentenceTransformer
    assert_same_vectors(plain, model, TEXTS)
    return again


@pytest.fixture(scope="module")
def outside(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as others publish them: trained with peft on the causal language model, all its layers."""
    causal = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(causal, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    train(model)
    path = tmp_path_factory.mktemp("adapters") / "outside"
    model.save_pretrained(str(path))
    return path


def changed(source: Path, target: Path, weights: Callable[[dict[str, Any]], dict[str, Any]], **config: Any) -> Path:
    """A copy of an adapter with other weights or another configuration."""
    shutil.copytree(source, target)
    save_file(weights(load_file(target / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps({**json.loads((target / CONFIG).read_text()), **config}))
    return target


@pytest.mark.parametrize("method", ["va", "aligned_va", "aligned_wva"])
@pytest.mark.parametrize("source", ["folder", "sliding"])
def test_an_adapter_on_a_local_model_is_saved_with_it(
    source: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(source)
    model = load(path, method)
    add_adapter(model)
    assert difference(model, load(path, method)) > 1e-3
    reload_both_ways(model, tmp_path / "saved")
    assert str(path.parent) not in (tmp_path / "saved" / CONFIG).read_text()


def test_an_adapter_on_the_bundled_model_is_saved_alone(tmp_path: Path) -> None:
    model = load("bundled", "va")
    add_adapter(model)
    reload_both_ways(model, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*.safetensors"))
    assert '"base_model_name_or_path": "bundled"' in (tmp_path / "saved" / CONFIG).read_text()


@pytest.mark.parametrize("source", ["folder", "bundled"])
def test_two_round_trips_give_the_same_folder(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = load("bundled" if source == "bundled" else request.getfixturevalue(source), "va")
    add_adapter(model)
    first = reload_both_ways(model, tmp_path / "first")
    assert_saved_alike(model, reload_both_ways(first, tmp_path / "second"), TEXTS)
    held = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == held
    for file in {WEIGHTS, "model.safetensors"}.intersection(held):
        one, two = load_file(tmp_path / "first" / file), load_file(tmp_path / "second" / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("source", ["folder", "bundled"])
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["o_proj"], "target_modules": ["v_proj"]},
        {"modules_to_save": ["lm_head", "norm"]},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_kind_of_lora_comes_back_exactly(
    settings: dict[str, Any], source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = load("bundled" if source == "bundled" else request.getfixturevalue(source), "va", layers=[1])
    add_adapter(model, **settings)
    reload_both_ways(model, tmp_path / "saved")


def test_an_adapter_of_the_causal_model_is_the_model_with_it_merged(
    folder: Path, outside: Path, tmp_path: Path
) -> None:
    causal = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), outside)
    shutil.copytree(folder, tmp_path / "merged")
    causal.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapted = load(outside, "va", layers=[0, 2], template=None)
    assert adapted.reader.model.config.num_hidden_layers == 3
    assert difference(adapted, load(tmp_path / "merged", "va", layers=[0, 2], template=None)) < 1e-5
    assert difference(adapted, load(folder, "va", layers=[0, 2], template=None)) > 1e-2


@pytest.mark.parametrize("targets", [r"model\.layers\.\d+\.self_attn\.[qv]_proj", "listed"])
def test_a_configuration_may_speak_of_the_whole_model(targets: str, folder: Path, tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(4) for kind in "qv"]
    settings: Any = {
        "target_modules": names if targets == "listed" else targets,
        "rank_pattern": {"model.layers.0.self_attn.v_proj": 3},
        "alpha_pattern": {"model.layers.1.self_attn.v_proj": 40},
    }
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, **settings))
    train(trained)
    trained.save_pretrained(str(tmp_path / "adapter"))
    shutil.copytree(folder, tmp_path / "merged")
    causal = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    causal.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapted = load(tmp_path / "adapter", "va", layers=[2], template=None)
    assert difference(adapted, load(tmp_path / "merged", "va", layers=[2], template=None)) < 1e-5
    reload_both_ways(adapted, tmp_path / "saved")


def test_weights_that_an_adapter_lacks_are_named(outside: Path, tmp_path: Path) -> None:
    cut = changed(outside, tmp_path / "cut", lambda held: {k: v for k, v in held.items() if ".layers.1." not in k})
    named = r"its adapter lacks 4 weights .*layers\.1\.self_attn\.q_proj\.lora_A.*they would be random"
    with pytest.raises(CheckpointError, match=named):
        load(cut, "va", layers=[2], template=None)
    # Layer 1 is above the cut here, so nothing is lacking.
    assert load(cut, "va", layers=[0], template=None).encode(TEXTS).shape[0] == 3
    alien = changed(
        outside, tmp_path / "alien", lambda held: {k.replace("self_attn", "attention"): v for k, v in held.items()}
    )
    with pytest.raises(CheckpointError, match=r"lacks 12 weights .*It holds layers\.0\.attention\.q_proj\.lora_A"):
        load(alien, "va", layers=[2], template=None)
    head = changed(outside, tmp_path / "head", lambda held: {"base_model.model.lm_head.lora_A.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"holds no weight for this decoder \(Qwen3Model\)"):
        load(head, "va", layers=[2], template=None)
    less = changed(outside, tmp_path / "less", dict, target_modules=["v_proj"])
    with pytest.raises(CheckpointError, match=r"holds 6 weights .*no place for: layers\.0\.self_attn\.q_proj\.lora_A"):
        load(less, "va", layers=[2], template=None)
    wide = changed(outside, tmp_path / "wide", dict, r=3)
    with pytest.raises(CheckpointError, match=r"cannot be put on Qwen3Model: .*size mismatch"):
        load(wide, "va", layers=[2], template=None)
    whole = changed(outside, tmp_path / "whole", dict, modules_to_save=["o_proj"])
    with pytest.raises(CheckpointError, match=r"lacks the weight layers\.0\.self_attn\.o_proj\.weight"):
        load(whole, "va", layers=[2], template=None)


def test_an_adapter_of_higher_layers_changes_nothing_below(folder: Path, outside: Path, tmp_path: Path) -> None:
    high = changed(
        outside,
        tmp_path / "high",
        lambda held: {k: v for k, v in held.items() if ".layers.3." in k},
        layers_to_transform=[3],
    )
    assert_same_vectors(
        load(high, "va", layers=[2], template=None), load(folder, "va", layers=[2], template=None), TEXTS
    )
    assert difference(load(high, "va", layers=[3], template=None), load(folder, "va", layers=[3], template=None)) > 0.01


def test_only_safetensors_are_read(outside: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(outside, tmp_path / "pickled")
    torch.save(load_file(pickled / WEIGHTS), pickled / "adapter_model.bin")
    (pickled / WEIGHTS).unlink()
    refused = r"its adapter holds adapter_model.bin only: pickled weights can run code, so only adapter_model.safeten"
    with pytest.raises(CheckpointError, match=refused):
        load(pickled, "va", template=None)
    with pytest.raises(CheckpointError, match=refused):
        load("me/pickled", "va", template=None, cache_folder=str(cached(tmp_path, "me/pickled", pickled)))
    (pickled / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: there is no adapter_model\.safetensors"):
        load(pickled, "va", template=None)


def test_damaged_adapters_are_named(outside: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(outside, tmp_path / "torn")
    (torn / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"torn.*damaged file adapter_model\.safetensors"):
        load(torn, "va", template=None)
    for written in ("{", "[]"):
        (torn / CONFIG).write_text(written)
        with pytest.raises(CheckpointError, match=r"torn.*adapter_config\.json is damaged"):
            load(torn, "va", template=None)
    unknown = changed(outside, tmp_path / "unknown", dict, peft_type="NEWEST")
    with pytest.raises(CheckpointError, match=r"configuration that peft cannot read: .*NEWEST"):
        load(unknown, "va", template=None)


def test_a_learned_prompt_is_refused(folder: Path, tmp_path: Path) -> None:
    causal = AutoModelForCausalLM.from_pretrained(folder)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(causal, config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(CheckpointError, match=r"cannot be put on Qwen3Model: .*prompt learning"):
        load(tmp_path / "prompt", "va", template=None)


def cached(cache: Path, repo: str, folder: Path, revision: str = "main", commit: str = COMMIT) -> Path:
    """File a folder in a hub cache, as a download leaves it."""
    place = cache / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)
    return cache / "hub"


def test_a_hub_adapter_is_taken_from_its_revision_and_cache(tmp_path: Path) -> None:
    wanted = []
    for seed, revision in enumerate(("main", "v2")):
        model = load("bundled", "va")
        add_adapter(model, seed=seed)
        model.save_pretrained(str(tmp_path / revision))
        cached(tmp_path, "me/adapter", tmp_path / revision, revision, str(seed) * 40)
        wanted.append(model)
    for model, revision in zip(wanted, (None, "v2"), strict=True):
        here: Any = {"revision": revision, "cache_folder": str(tmp_path / "hub")}
        assert_saved_alike(model, load("me/adapter", **here), TEXTS)
        assert_saved_alike(model, load("me/adapter", local_files_only=True, **here), TEXTS)


def test_a_hub_adapter_is_downloaded_to_the_cache_that_was_named(tmp_path: Path) -> None:
    model = load("bundled", "va")
    add_adapter(model)
    model.save_pretrained(str(tmp_path / "saved"))
    with fake_hub("me/adapter", tmp_path / "saved") as hub:
        assert_saved_alike(model, load("me/adapter", cache_folder=str(tmp_path / "cache")), TEXTS)
    assert {CONFIG, WEIGHTS} <= hub.sent
    assert list((tmp_path / "cache").rglob(WEIGHTS))


def test_the_base_is_where_the_weights_are(folder: Path, outside: Path, tmp_path: Path) -> None:
    expected = load(outside, "va", layers=[2], template=None)
    beside = shutil.copytree(outside, tmp_path / "beside")
    shutil.copy(folder / "config.json", beside)
    assert_saved_alike(expected, load(beside, "va", layers=[2], template=None), TEXTS)
    assert info(beside, "va", layers=[2], template=None).num_layers == 4
    together = changed(outside, tmp_path / "together", dict, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="is an adapter that does not name its base model"):
        load(together, "va", layers=[2], template=None)
    shutil.copytree(folder, together, dirs_exist_ok=True)
    assert_saved_alike(expected, load(together, "va", layers=[2], template=None), TEXTS)
    gone = changed(outside, tmp_path / "gone", dict, base_model_name_or_path="./gone")
    with pytest.raises(CheckpointError, match=r"gone' is an adapter, and its base is missing: no folder '\./gone'"):
        load(gone, "va", layers=[2], template=None)


def test_the_base_is_taken_at_the_revision_that_the_adapter_names(folder: Path, outside: Path, tmp_path: Path) -> None:
    cache = cached(tmp_path, "org/base", folder, "v1", "a" * 40)
    other = shutil.copytree(folder, tmp_path / "other")
    held = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in held.items()}, other / "model.safetensors", {"format": "pt"})
    cached(tmp_path, "org/base", other, "main", "b" * 40)
    old = changed(outside, tmp_path / "old", dict, base_model_name_or_path="org/base", revision="v1")
    new = changed(outside, tmp_path / "new", dict, base_model_name_or_path="org/base", revision=None)
    one, two = (load(path, "va", layers=[2], template=None, cache_folder=str(cache)) for path in (old, new))
    assert_saved_alike(load(outside, "va", layers=[2], template=None), one, TEXTS)
    assert (one.reader.origin.revision, two.reader.origin.revision) == ("a" * 40, "b" * 40)
    assert difference(one, two) > 1e-3


def both(model: ValueEncoder) -> None:
    add_adapter(model, "second")
    model.set_adapter(["default", "second"])


def merge(model: ValueEncoder) -> None:
    for module in model.modules():
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            module.merge()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.parametrize("source", ["folder", "bundled"])
@pytest.mark.parametrize(
    ("spoil", "named", "mend"),
    [
        (
            ValueEncoder.disable_adapters,
            r"'default' is disabled, .*enable_adapters\(\) .* or delete_adapter\('default'\)",
            "enable_adapters",
        ),
        (
            lambda model: add_adapter(model, "second"),
            r"holds 2 adapters \(default, second\), .*delete_adapter\('default'\)",
            "delete_adapter default",
        ),
        (both, r"holds 2 adapters \(default, second\), .*delete_adapter\('second'\)", "delete_adapter second"),
        (
            lambda model: model.set_adapter([]),
            r"'default' is not active in .*set_adapter\('default'\)",
            "set_adapter default",
        ),
        (merge, r"merged into .*v_proj.* and would count twice .*unmerge\(\)", ""),
    ],
    ids=["disabled", "second", "both", "none_active", "merged"],
)
def test_what_a_folder_cannot_record_is_an_error_that_says_what_to_do(
    spoil: Callable[[ValueEncoder], None],
    named: str,
    mend: str,
    source: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = load("bundled" if source == "bundled" else request.getfixturevalue(source), "va", layers=[1])
    add_adapter(model)
    spoil(model)
    with pytest.raises(OutputError, match=named):
        model.save_pretrained(str(tmp_path / "refused"))
    if mend:
        verb, *names = mend.split()
        getattr(model, verb)(*names)
        reload_both_ways(model, tmp_path / "saved")


@pytest.mark.parametrize("settings", [{}, {"trainable_token_indices": [1]}, {"use_dora": True}], ids=str)
def test_a_model_whose_adapter_was_deleted_is_saved_plain(
    settings: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    plain = load(folder, "va", layers=[1])
    plain.save_pretrained(str(tmp_path / "plain"))
    model = load(folder, "va", layers=[1])
    add_adapter(model, **settings)
    # Into a folder that held an adapter before.
    model.save_pretrained(str(tmp_path / "saved"))
    model.delete_adapter("default")
    again = reload_both_ways(model, tmp_path / "saved")
    assert_saved_alike(plain, again, TEXTS)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "saved"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {p.name for p in (tmp_path / "plain").iterdir()}


@pytest.mark.parametrize("in_place", [True, False])
def test_adapters_put_on_by_peft_itself_are_saved_and_merged(in_place: bool, folder: Path, tmp_path: Path) -> None:
    model = load(folder, "va", layers=[1])
    around = get_peft_model(model.reader.model, LoraConfig(r=2, target_modules=["v_proj"]))
    train(around)
    if not in_place:
        model.reader.model = around
    adapted = reload_both_ways(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / WEIGHTS).is_file()
    model.reader.model = around.merge_and_unload()
    # Merged, the two products are one: other sums, and so another rounding.
    assert_same_vectors(model, adapted, TEXTS, tolerance=1e-5)
    reload_both_ways(model, tmp_path / "merged")
    assert not (tmp_path / "merged" / CONFIG).exists()
