"""Our models in other people's packages give our vectors. Each test runs where the package is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import valuembed

TEXTS = ["A cat sleeps on the sofa.", "Shares fell."]
QUERY = "Where is the cat?"

pytestmark = pytest.mark.filterwarnings("ignore")


def package(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """Queries and documents read differently, and queries have an instruction."""
    template = {"query": '{prompt}This question : "{text}" means:"', "document": "prompt_eol"}
    return valuembed.load(str(folder), template=template, prompts={"query": "Find it. "})


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("saved") / "model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alike(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """Queries and documents read alike, as with every recipe that is not told otherwise."""
    model = valuembed.load(str(folder))
    path = str(tmp_path_factory.mktemp("alike") / "model")
    model.save_pretrained(path)
    return model, path


def same(ours: Any, theirs: Any) -> bool:
    return bool(np.abs(np.asarray(ours) - np.asarray(theirs, np.float32)).max() < 1e-6)


def test_langchain(model: Any, saved: str) -> None:
    embeddings = package("langchain_huggingface").HuggingFaceEmbeddings
    trusted = {"model_name": saved, "model_kwargs": {"trust_remote_code": True}}
    theirs = embeddings(
        **trusted,
        encode_kwargs={"task": "document", "prompt_name": "document"},
        query_encode_kwargs={"task": "query", "prompt_name": "query"},
    )
    assert same(model.encode_document(TEXTS), theirs.embed_documents(TEXTS))
    assert same(model.encode_query(QUERY), theirs.embed_query(QUERY))
    # What the page warns of: without these, a query is read as a text; and line ends become blanks.
    assert not same(model.encode_query(QUERY), embeddings(**trusted).embed_query(QUERY))
    assert same(model.encode_document(["one two"]), theirs.embed_documents(["one\ntwo"]))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        embeddings(model_name=saved)


def test_llamaindex(model: Any, saved: str, alike: tuple[Any, str]) -> None:
    embedding = package("llama_index.embeddings.huggingface").HuggingFaceEmbedding
    plain, path = alike
    theirs = embedding(model_name=path, trust_remote_code=True, query_instruction="Find it. ")
    assert same(plain.encode_document(TEXTS), theirs.get_text_embedding_batch(TEXTS))
    assert same(plain.encode(QUERY, prompt="Find it. "), theirs.get_query_embedding(QUERY))
    # What the page warns of: it has no way to name a role, and drops the instruction that was saved.
    theirs = embedding(model_name=saved, trust_remote_code=True)
    assert not same(model.encode_query(QUERY), theirs.get_query_embedding(QUERY))


def test_chroma(alike: tuple[Any, str]) -> None:
    functions = package("chromadb.utils.embedding_functions")
    plain, path = alike
    theirs = functions.SentenceTransformerEmbeddingFunction(model_name=path, trust_remote_code=True)
    assert same(plain.encode(TEXTS), theirs(TEXTS))


def test_bertopic(alike: tuple[Any, str]) -> None:
    package("bertopic")
    from bertopic.backend._utils import select_backend

    # What the page warns of: it wants a model of its own then, which cannot be had offline.
    with pytest.raises(OSError, match=r"all-MiniLM-L6-v2|huggingface\.co"):
        select_backend(alike[0], language="english")


def test_haystack(model: Any, saved: str) -> None:
    package("haystack")
    embedders = package("haystack_integrations.components.embedders.sentence_transformers")
    from haystack import Document

    trusted = {"model": saved, "trust_remote_code": True, "progress_bar": False}
    documents = embedders.SentenceTransformersDocumentEmbedder(
        **trusted, encode_kwargs={"task": "document", "prompt_name": "document"}
    )
    query = embedders.SentenceTransformersTextEmbedder(
        **trusted, encode_kwargs={"task": "query", "prompt_name": "query"}
    )
    documents.warm_up()
    query.warm_up()
    found = documents.run([Document(content=text) for text in TEXTS])["documents"]
    assert same(model.encode_document(TEXTS), [document.embedding for document in found])
    assert same(model.encode_query(QUERY), query.run(QUERY)["embedding"])
    # What the page warns of: without these, a query is read as a text.
    plain = embedders.SentenceTransformersTextEmbedder(**trusted)
    plain.warm_up()
    assert not same(model.encode_query(QUERY), plain.run(QUERY)["embedding"])


def test_txtai(alike: tuple[Any, str]) -> None:
    embeddings = package("txtai").Embeddings
    plain, path = alike
    theirs = embeddings(method="external", transform=lambda texts: plain.encode(list(texts)))
    assert same(plain.encode(TEXTS), theirs.batchtransform(TEXTS))
    theirs = embeddings(path=path, method="sentence-transformers", vectors={"trust_remote_code": True})
    assert same(plain.encode(TEXTS), theirs.batchtransform(TEXTS))


def test_qdrant(alike: tuple[Any, str]) -> None:
    qdrant = package("qdrant_client")
    plain, _ = alike
    vectors, query = plain.encode_document(TEXTS), plain.encode_query(QUERY)
    client = qdrant.QdrantClient(":memory:")
    size = qdrant.models.VectorParams(size=vectors.shape[1], distance=qdrant.models.Distance.COSINE)
    client.create_collection("texts", vectors_config=size)
    points = [qdrant.models.PointStruct(id=at, vector=vector.tolist()) for at, vector in enumerate(vectors)]
    client.upsert("texts", points)
    found = client.query_points("texts", query=query.tolist()).points
    assert same(sorted(vectors @ query), sorted(point.score for point in found))
    client.close()
