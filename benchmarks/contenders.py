"""Everyone who embeds in the throughput benchmark, each in a process of its own: ours, and the peers as they are used.

The peers get plain text, not their chat template. ``make(path)`` gives a function from texts to what was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from shapes import Shape

from valuembed.recipes.methods import METHODS

PROMPT_EOL = METHODS["prompt_eol"].template[0]
META_EOL = METHODS["meta_eol"].template
TUNED_TOKENS = 8192


@dataclass(frozen=True)
class Work:
    """What one call computed.

    Attributes:
        tokens: real tokens that went through the decoder, padding left out; a beginning that is kept counts once.
        padded: the same with padding.
        flops: multiplications and additions of the matrices for the real tokens, in layers that ran.
        vectors: ``[b, width]`` of the texts; None where that is not what was computed.
    """

    tokens: int
    padded: int
    flops: float
    vectors: Any = None


Contender = Callable[[list[str]], Work]


def needed_parameters(model: Any, shape: Shape) -> int:
    """Weights that a token of an encoder of ours has to be multiplied with."""
    recipe, held = model.recipe, model.reader.model.config.num_hidden_layers
    if recipe.reads_final_norm:
        return int(held * shape.layer_parameters())
    # Nothing of the last layer but what its signal needs: the three projections in, or the whole attention block.
    inside = shape.attention_parameters()
    if recipe.weights == "mean":
        inside -= shape.width * shape.heads * shape.head_width
    return int((held - 1) * shape.layer_parameters() + inside)


def ours(
    path: str, device: str, dtype: str, shape: Shape, method: str, weights: str | None = None, **options: Any
) -> Contender:
    """This library with its defaults, but for ``options``; ``weights`` is a precision in place of everyone's."""
    import valuembed
    from valuembed.execution.cpu_memory import tune_memory

    # As the command line and the server do.
    tune_memory()
    model = valuembed.load(path, method, dtype=weights or dtype, device=device, **options)
    of_token = needed_parameters(model, shape)
    padded = [0]
    model.reader.model.register_forward_pre_hook(
        lambda _, args, given: padded.__setitem__(0, padded[0] + given["input_ids"].numel()), with_kwargs=True
    )

    def run(texts: list[str]) -> Work:
        padded[0] = 0
        vectors = model.encode(texts, show_progress_bar=False)
        assert model.report is not None
        tokens = model.report.tokens - model.report.reused
        return Work(tokens, padded[0], 2.0 * tokens * of_token, vectors)

    return run


def mean_pooling(path: str, device: str, dtype: str) -> Any:
    """Sentence-transformers' own model for any checkpoint: mean pooling of the last hidden states of the plain text.

    It would put a text into the chat template of a tokenizer that has one, which is several times the tokens.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(path, model_kwargs={"dtype": getattr(torch, dtype)}, processor_kwargs={"chat_template": None})
    if body.tokenizer.pad_token is None:
        body.tokenizer.pad_token = body.tokenizer.eos_token
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "mean")], device=device)


def sentence_transformers_mean(
    path: str, device: str, dtype: str, shape: Shape, batch_size: int = 32, model: Any = None
) -> Contender:
    """What :func:`mean_pooling` gives, or a ``model`` that it gave before."""
    model = model or mean_pooling(path, device, dtype)
    tokenizer = model.tokenizer

    def run(texts: list[str]) -> Work:
        vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False)
        # As its encode sorts and cuts them: by characters, longest first.
        lengths = [len(ids) for ids in tokenizer(sorted(texts, key=len, reverse=True))["input_ids"]]
        batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
        return _full(shape, lengths, batches, vectors)

    return run


def published(
    path: str,
    device: str,
    dtype: str,
    shape: Shape,
    templates: tuple[str, ...] = (PROMPT_EOL,),
    batch_size: int = 16,
    model: Any = None,
) -> Contender:
    """Prompts as published code runs them: left padding, all hidden states, batches in the order given.

    ``model`` is a causal language model that is loaded already.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()

    @torch.no_grad()
    def run(texts: list[str]) -> Work:
        lengths: list[list[int]] = []
        found = []
        for start in range(0, len(texts), batch_size):
            of_batch: Any = 0
            for template in templates:
                prompts = [template.replace("{text}", text) for text in texts[start : start + batch_size]]
                batch = tokenizer(prompts, return_tensors="pt", padding=True).to(device)
                states = model(**batch, output_hidden_states=True, return_dict=True).hidden_states
                of_batch = of_batch + states[-1][:, -1, :].float().cpu()
                lengths.append(batch["attention_mask"].sum(1).tolist())
            found.append(of_batch)
        return _full(shape, [length for some in lengths for length in some], lengths, torch.cat(found).numpy())

    return run


def tuned(path: str, device: str, dtype: str, shape: Shape, model: Any = None) -> Contender:
    """PromptEOL as one would write it with care: sorted by tokens, a budget of tokens, the last state alone.

    ``model`` is a decoder that is loaded already.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if model is None:
        model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()

    @torch.inference_mode()
    def run(texts: list[str]) -> Work:
        rows = tokenizer([PROMPT_EOL.replace("{text}", text) for text in texts])["input_ids"]
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]), reverse=True)
        rows = [rows[at] for at in order]
        found = []
        batches: list[list[list[int]]] = [[]]
        for row in rows:
            if batches[-1] and (len(batches[-1]) + 1) * len(batches[-1][0]) > TUNED_TOKENS:
                batches.append([])
            batches[-1].append(row)
        for batch in batches:
            longest = len(batch[0])
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            found.append(states[torch.arange(len(batch)), mask.sum(1) - 1].float().cpu())
        vectors = torch.cat(found)[torch.tensor(order).argsort()].numpy()
        return _full(shape, [len(row) for row in rows], [[len(row) for row in batch] for batch in batches], vectors)

    return run


def llama_cpp(
    path: str, device: str, dtype: str, shape: Shape, gguf: str, batch: int = 2048, parallel: int = 16
) -> Contender:
    """llama.cpp on a GGUF file, mean pooling, by its server's engine in this process (package ``xllamacpp``).

    Args:
        gguf: the file; ``path`` and ``dtype`` do not matter.
        batch: tokens that it computes at once.
        parallel: texts that it may put into one batch.
    """
    import numpy as np
    import xllamacpp  # type: ignore[import-not-found]

    threads = torch.get_num_threads()
    given = xllamacpp.CommonParams()
    given.model.path = gguf
    given.embedding = True
    given.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    given.n_batch = given.n_ubatch = batch
    given.n_parallel = parallel
    # The context is shared out among texts that run at once.
    given.n_ctx = 512 * parallel
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    given.verbosity = -1
    server = xllamacpp.Server(given)

    def run(texts: list[str]) -> Work:
        answer = server.handle_embeddings({"input": texts, "model": "m"})
        vectors = np.array([row["embedding"] for row in answer["data"]], np.float32)
        tokens = answer["usage"]["total_tokens"]
        return Work(tokens, tokens, 2.0 * tokens * shape.layers * shape.layer_parameters(), vectors)

    return run


def matrix_product(device: str, dtype: str, shape: Shape) -> Contender:
    """The best of five matrix products, the model's own among them: what the machine can do."""
    rows = 4096 if device == "cpu" else 16384
    sizes = [
        (shape.width, shape.inner),
        (shape.inner, shape.width),
        (shape.width, shape.heads * shape.head_width),
        (shape.width, shape.width),
        (2048, 2048),
    ]
    pairs = [
        (
            torch.randn(rows, a, device=device).to(getattr(torch, dtype)),
            torch.randn(b, a, device=device).to(getattr(torch, dtype)),
        )
        for a, b in sizes
    ]

    def run(texts: list[str]) -> Work:
        best = 0.0
        for one, other in pairs:
            for _ in range(3):
                begin = perf_counter()
                torch.nn.functional.linear(one, other)
                if device != "cpu":
                    torch.cuda.synchronize()
                best = max(best, 2.0 * rows * other.numel() / (perf_counter() - begin))
        return Work(0, 0, best)

    return run


def _full(shape: Shape, lengths: list[int], batches: list[list[int]], vectors: Any = None) -> Work:
    tokens = sum(lengths)
    padded = sum(len(batch) * max(batch) for batch in batches)
    return Work(tokens, padded, 2.0 * tokens * shape.layers * shape.layer_parameters(), vectors)


CONTENDERS: dict[str, tuple[Callable[..., Contender], dict[str, Any]]] = {
    "VA": (ours, {"method": "va"}),
    "VA, compiled": (ours, {"method": "va", "compile": True}),
    "AlignedWVA + PromptEOL": (ours, {"method": "aligned_wva"}),
    "AlignedWVA + PromptEOL, compiled": (ours, {"method": "aligned_wva", "compile": True}),
    "MetaEOL, ours": (ours, {"method": "meta_eol"}),
    "MetaEOL, ours, compiled": (ours, {"method": "meta_eol", "compile": True}),
    "sentence-transformers mean pooling": (sentence_transformers_mean, {}),
    "sentence-transformers mean pooling, batches of 8": (sentence_transformers_mean, {"batch_size": 8}),
    "sentence-transformers mean pooling, batches of 128": (sentence_transformers_mean, {"batch_size": 128}),
    "PromptEOL as published": (published, {"templates": (PROMPT_EOL,)}),
    "PromptEOL, tuned": (tuned, {}),
    "MetaEOL as published": (published, {"templates": META_EOL}),
    "matrix product": (matrix_product, {}),
}
LLAMA_CPP: dict[str, tuple[Callable[..., Contender], dict[str, Any]]] = {
    f"llama.cpp, mean pooling, {parallel} at once, batches of {batch}": (
        llama_cpp,
        {"parallel": parallel, "batch": batch},
    )
    for parallel, batch in ((1, 512), (16, 512), (16, 2048), (64, 2048))
}
"""llama.cpp in the settings that decide its speed; of these its best one counts."""
PRECISIONS: dict[str, tuple[Callable[..., Contender], dict[str, Any]]] = {
    f"{name}, {weights}{', compiled' if compiled else ''}": (
        ours,
        {"method": method, "weights": weights, "compile": compiled},
    )
    for name, method in (("VA", "va"), ("AlignedWVA + PromptEOL", "aligned_wva"))
    for weights in ("float32", "bfloat16", "int8", "fp8")
    for compiled in (False, True)
}
"""Two methods in the precisions that weights can have."""
