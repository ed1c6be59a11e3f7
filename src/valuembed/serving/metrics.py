"""What a server tells Prometheus. Each server has a registry of its own, and no label holds what a client sent."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from valuembed.serving.batcher import BatcherListener

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics(BatcherListener):
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "valuembed_requests", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "valuembed_request_seconds",
            "From a request's first line to its last byte, by route.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._texts = Counter("valuembed_texts", "Texts embedded.", registry=registry)
        self._tokens = Counter("valuembed_tokens", "Tokens embedded, templates included.", registry=registry)
        self._truncated = Counter(
            "valuembed_truncated_texts", "Texts that lost tokens of their end.", registry=registry
        )
        self._wait = Histogram(
            "valuembed_wait_seconds",
            "From a request's queueing to its first text's turn.",
            buckets=SECONDS,
            registry=registry,
        )
        self._step = Histogram("valuembed_step_seconds", "Computing a step.", buckets=SECONDS, registry=registry)
        self._step_texts = Histogram("valuembed_step_texts", "Texts of a step.", buckets=TEXTS, registry=registry)
        self._search = Histogram(
            "valuembed_search_seconds",
            "Searching the index, the query's embedding left out.",
            buckets=SECONDS,
            registry=registry,
        )
        self._step_tokens = Histogram("valuembed_step_tokens", "Tokens of a step.", buckets=TOKENS, registry=registry)

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Report a number that is looked up whenever it is asked for."""
        Gauge(f"valuembed_{name}", documentation, registry=self.registry).set_function(value)

    def waited(self, seconds: float) -> None:
        """A request's first text was taken."""
        self._wait.observe(seconds)

    def computed(self, texts: int, tokens: int, seconds: float) -> None:
        """A step was computed."""
        self._step.observe(seconds)
        self._step_texts.observe(texts)
        self._step_tokens.observe(tokens)

    def embedded(self, texts: int, tokens: int, truncated: int) -> None:
        """A request was embedded."""
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        self._truncated.inc(truncated)

    def searched(self, seconds: float) -> None:
        """The index was searched."""
        self._search.observe(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
