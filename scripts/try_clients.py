"""Ask a running server through the clients of other servers that are installed, and compare their vectors.

    valuembed serve --port 8000
    python scripts/try_clients.py http://127.0.0.1:8000

With a key in VALUEMBED_API_KEY, clients send it. A client that is not installed is left out, and said so.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx
import numpy as np

TEXTS = ["A cat sleeps on the sofa.", "Shares fell."]

CLOSE = 1e-5

Ask = Callable[[Any, str, str, str], Any]
"""What asks through a client: its module, the server's address, the model's name and the key."""


def _ollama(module: Any, url: str, model: str, key: str) -> Any:
    client = module.Client(host=url, headers={"Authorization": f"Bearer {key}"})
    client.show(model)
    one = client.embeddings(model, TEXTS[0])["embedding"]
    return [one, client.embed(model, TEXTS)["embeddings"][1]]


def _langchain(module: Any, url: str, model: str, key: str) -> Any:
    headers = {"headers": {"Authorization": f"Bearer {key}"}}
    embeddings = module.OllamaEmbeddings(model=model, base_url=url, client_kwargs=headers, validate_model_on_init=True)
    return embeddings.embed_documents(TEXTS)


def _llamaindex_ollama(module: Any, url: str, model: str, key: str) -> Any:
    headers = {"headers": {"Authorization": f"Bearer {key}"}}
    return module.OllamaEmbedding(model, url, client_kwargs=headers).get_text_embedding_batch(TEXTS)


def _llamaindex_tei(module: Any, url: str, model: str, key: str) -> Any:
    return module.TextEmbeddingsInference(model, url, auth_token=key).get_text_embedding_batch(TEXTS)


def _hugging_face(module: Any, url: str, model: str, key: str) -> Any:
    try:
        return module.InferenceClient(model=url, token=key).feature_extraction(TEXTS)
    finally:
        # Its connections are the process's, and stay open.
        module.close_session()


def _litellm(prefix: str, path: str, **more: Any) -> Ask:
    def ask(module: Any, url: str, model: str, key: str) -> Any:
        answer = module.embedding(f"{prefix}/{model}", TEXTS, api_base=url + path, api_key=key, **more)
        return [item["embedding"] for item in answer.data]

    return ask


def _openai(module: Any, url: str, model: str, key: str) -> Any:
    with module.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        return [item.embedding for item in client.embeddings.create(model=model, input=TEXTS).data]


CLIENTS: dict[str, tuple[str, str, Ask]] = {
    "OpenAI": ("openai", "openai", _openai),
    "Ollama": ("ollama", "ollama", _ollama),
    "LangChain": ("langchain-ollama", "langchain_ollama", _langchain),
    "LlamaIndex, Ollama": ("llama-index-embeddings-ollama", "llama_index.embeddings.ollama", _llamaindex_ollama),
    "LlamaIndex, TEI": (
        "llama-index-embeddings-text-embeddings-inference",
        "llama_index.embeddings.text_embeddings_inference",
        _llamaindex_tei,
    ),
    "Hugging Face": ("huggingface_hub", "huggingface_hub", _hugging_face),
    "LiteLLM, openai/": ("litellm", "litellm", _litellm("openai", "/v1")),
    "LiteLLM, ollama/": ("litellm", "litellm", _litellm("ollama", "")),
    "LiteLLM, huggingface/": ("litellm", "litellm", _litellm("huggingface", "/embed", input_type="embed")),
}
"""Clients by name: the package, the module that is imported, and what asks."""


def try_client(name: str, url: str, model: str, key: str, expected: Any) -> str:
    """What became of asking through one client, in words."""
    package, module, ask = CLIENTS[name]
    try:
        installed = version(package)
    except PackageNotFoundError:
        return "not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.asarray(ask(import_module(module), url, model, key), np.float32)
    except Exception as error:
        return f"{package} {installed}: {type(error).__name__}: {error}"
    same = found.shape == expected.shape and float(np.abs(found - expected).max()) < CLOSE
    return f"{package} {installed}: {'the same vectors' if same else 'OTHER VECTORS'}"


def main(url: str) -> int:
    """Try all of them; how many failed."""
    # LiteLLM would fetch a list of prices.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    key = os.environ.get("VALUEMBED_API_KEY") or "none"
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": TEXTS}, headers={"Authorization": f"Bearer {key}"})
    model = answer.raise_for_status().json()["model"]
    expected = np.asarray([item["embedding"] for item in answer.json()["data"]], np.float32)
    found = {name: try_client(name, url, model, key, expected) for name in CLIENTS}
    for name, outcome in found.items():
        print(f"{name:22} {outcome}")
    return sum(not outcome.endswith(("the same vectors", "not installed")) for outcome in found.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
