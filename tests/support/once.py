"""What is the same in every test, and done once for all of them."""

from __future__ import annotations

import json
from functools import cache

import pytest
from transformers import PretrainedConfig

from valuembed.backbone import resolution
from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.tracing import trace_architecture
from valuembed.testing import ARCHITECTURES, tiny_config

OF_A_FILE = ("_name_or_path", "transformers_version")
"""What a configuration says of its file, and a trace never asks for."""


FEW = ("deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "lfm2", "qwen3")
"""Families that differ most in how their values are made: the others wait for the whole suite."""

EVERY_FAMILY = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
"""Every family, for a test of each."""


@cache
def traced(architecture: str) -> DecoderSpec:
    """The trace of a family's tiny decoder."""
    return trace_architecture(tiny_config(architecture))


class Traces:
    """Traces of loads, by configuration.

    Who calls :func:`trace_architecture` itself gets a trace of its own, and so does every load that is refused, or that
    runs code of the checkpoint's.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._known: dict[tuple[type, str], DecoderSpec] = {}
        self._trace = resolution.trace_architecture
        patch.setattr(resolution, "trace_architecture", self)

    def __call__(self, config: PretrainedConfig, *, trust_remote_code: bool = False) -> DecoderSpec:
        if trust_remote_code:
            return self._trace(config, trust_remote_code=True)
        told = {name: value for name, value in config.to_dict().items() if name not in OF_A_FILE}
        key = type(config), json.dumps(told, sort_keys=True, default=repr)
        if key not in self._known:
            self._known[key] = self._trace(config)
        return self._known[key]

    def forget(self) -> None:
        """Trace every configuration again, once."""
        self._known.clear()
