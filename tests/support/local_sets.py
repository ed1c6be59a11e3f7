"""Sets of a few rows whose scores can be worked out by hand, and an encoder whose vectors are given."""

import math
import socket

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")


class Lookup(mteb.models.abs_encoder.AbsEncoder):
    """An encoder whose vectors are given, by text."""

    def __init__(self, vectors):
        self.vectors = {text: np.asarray(vector, dtype=np.float32) for text, vector in vectors.items()}
        cosine = mteb.models.model_meta.ScoringFunction.COSINE
        about = {"name": "test/lookup", "revision": "1", "similarity_fn_name": cosine}
        self.mteb_model_meta = mteb.models.model_meta.ModelMeta.create_empty(about)
        self.calls = []

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        self.calls.append((prompt_type, texts))
        return np.stack([self.vectors[text] for text in texts])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local task reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def run(task, encoder, cache=None):
    results = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False, co2_tracker=False)
    (result,) = results.task_results
    (scores,) = result.scores[task.eval_splits[0]]
    return scores


def at(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


# Four pairs. Angles 0, 40, 60, 90 between the two: the cosines fall in this order.
STS = [
    {"sentence1": "a", "sentence2": name, "score": score, "split": "dev"}
    for name, score in zip(["b0", "b40", "b60", "b90"], [5, 1, 3, 0], strict=True)
]
STS_ENCODER = {"a": at(0), "b0": at(0), "b40": at(40), "b60": at(60), "b90": at(90)}

DOCS = [{"id": name, "text": name} for name in ("d10", "d20", "d30", "d80")]
QUERIES = [{"id": "1", "text": "q0"}, {"id": "2", "text": "q90"}, {"id": "3", "text": "unjudged"}]
QRELS = [
    {"query_id": "1", "doc_id": "d20", "score": 1},
    {"query_id": "2", "doc_id": "d80", "score": 1},
    {"query_id": "2", "doc_id": "d30", "score": 2},
]
SEARCH_ENCODER = {f"d{angle}": at(angle) for angle in (10, 20, 30, 80)} | {"q0": at(0), "q90": at(90)}
