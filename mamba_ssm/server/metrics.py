"""What /metrics shows, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mamba_ssm.server.worker import Worker


class Metrics:
    """Counters of one server."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mamba_esi_requests", "Requests that were answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "mamba_esi_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.prompt_tokens = Counter("mamba_esi_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.tokens = Counter("mamba_esi_generated_tokens", "Tokens that were generated.", registry=self.registry)
        waiting = Gauge("mamba_esi_waiting", "Texts and questions that wait for the model.", registry=self.registry)
        waiting.set_function(lambda: worker.waiting)
        decoding = Gauge("mamba_esi_decoding", "Texts that are decoded together.", registry=self.registry)
        decoding.set_function(lambda: worker.decoding)
