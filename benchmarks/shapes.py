"""Random checkpoints in the shape of known models, with a small vocabulary and a real tokenizer; texts of any length.

Random weights compute as fast as trained ones; nothing that is measured on them says anything about quality.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from valuembed.backbone.checkpoints import locate

VOCABULARY = 8192
SENTENCES = Path(__file__).parents[1] / "examples" / "sentences.txt"


@dataclass(frozen=True)
class Shape:
    """What decides a decoder's arithmetic, in the published model's numbers."""

    config: type[PretrainedConfig]
    layers: int
    width: int
    inner: int
    heads: int
    value_heads: int
    head_width: int

    def layer_parameters(self) -> int:
        """Weights of one layer's matrices: each is a multiplication and an addition a token."""
        return self.attention_parameters() + 3 * self.width * self.inner

    def attention_parameters(self) -> int:
        return 2 * self.width * self.head_width * (self.heads + self.value_heads)


def shape_of(folder: Path) -> Shape:
    """The shape of a checkpoint that is there."""
    config = AutoConfig.from_pretrained(folder)
    heads = config.num_attention_heads
    return Shape(
        type(config),
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


SHAPES = {
    "qwen3-0.6b": Shape(Qwen3Config, 28, 1024, 3072, 16, 8, 128),
    "qwen3-8b": Shape(Qwen3Config, 36, 4096, 12288, 32, 8, 128),
    "llama-2-7b": Shape(LlamaConfig, 32, 4096, 11008, 32, 32, 128),
    # SmolLM2-135M, but for 12 of its 30 layers.
    "small": Shape(LlamaConfig, 12, 576, 1536, 9, 3, 64),
    "tiny": Shape(Qwen3Config, 4, 64, 192, 4, 2, 16),
}


def make_checkpoint(folder: Path, name: str, dtype: str = "bfloat16", device: str = "cpu") -> Path:
    """A random checkpoint of a shape, with the bundled model's tokenizer (byte-level BPE, 8,192 entries).

    Its weights are drawn on ``device``: those of a large model take minutes on a CPU.
    """
    shape = SHAPES[name]
    config = shape.config(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.value_heads,
        head_dim=shape.head_width,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    bundled = Path(locate("bundled").location)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / file, folder / file)
    return folder


def some_texts(
    count: int, *, median: float = 20.0, spread: float = 0.8, longest: int = 400, seed: int = 0
) -> list[str]:
    """Different texts from sentences to paragraphs, their numbers of words log-normal.

    Args:
        count: how many.
        median: words of the text in the middle.
        spread: standard deviation of the logarithm.
        longest: most words of a text.
        seed: of everything drawn.
    """
    draw = random.Random(seed)
    words = SENTENCES.read_text(encoding="utf-8").split()
    lengths = [min(longest, max(3, round(draw.lognormvariate(0, spread) * median))) for _ in range(count)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]
