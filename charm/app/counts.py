"""What the server has done since it started: as JSON, and in the text format that Prometheus scrapes."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from charm.app.batcher import Served

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["CONTENT_TYPE_LATEST", "Counts", "describe_counts", "format_counts"]


@dataclass(frozen=True, eq=False)
class Counts(Collector):
    """Requests answered, images rejected by reason, what the model was given, and what waits for it."""

    requests: int
    rejected: Mapping[str, int]
    served: Served
    waiting: int

    def collect(self) -> Iterator[Metric]:
        served = self.served
        counters = {
            "requests": ("Requests that were answered.", self.requests),
            "images": ("Images that were scored.", served.images),
            "batches": ("Batches that the model was given.", served.batches),
            "tokens": ("Tokens that the model was given.", served.tokens),
            "model_seconds": ("Seconds that the model was at work.", served.busy_seconds),
        }
        for name, (told, value) in counters.items():
            yield CounterMetricFamily(f"charm_{name}", told, value=value)
        rejected = CounterMetricFamily("charm_rejected", "Images that were rejected.", labels=["reason"])
        for reason, count in self.rejected.items():
            rejected.add_metric([reason], count)
        yield rejected
        yield GaugeMetricFamily("charm_waiting", "Images that wait for the model.", value=self.waiting)
        yield GaugeMetricFamily("charm_largest_batch", "Images of the largest batch.", value=served.largest_batch)
        for name, megabytes in _measure_memory().items():
            yield GaugeMetricFamily(f"charm_{name[:-3]}_bytes", "Memory of the server.", value=megabytes * 1e6)


def describe_counts(counts: Counts) -> dict[str, Any]:
    """Returns the counts for JSON."""
    served = counts.served
    return {
        "requests": counts.requests,
        "images": served.images,
        "rejected": dict(counts.rejected),
        "batches": served.batches,
        "mean_batch": served.images / served.batches if served.batches else 0.0,
        "largest_batch": served.largest_batch,
        "tokens_per_second": served.tokens / served.busy_seconds if served.busy_seconds else 0.0,
        "waiting": counts.waiting,
        **_measure_memory(),
    }


def format_counts(counts: Counts) -> bytes:
    """Formats the counts as CONTENT_TYPE_LATEST says."""
    text: bytes = generate_latest(counts)
    return text


def _measure_memory() -> dict[str, float]:
    """Megabytes of this process: now, where the system tells, and at most so far; nothing where it tells neither."""
    if resource is None:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    pages = Path("/proc/self/statm")
    now = int(pages.read_text().split()[1]) * resource.getpagesize() / 1e6 if pages.exists() else peak
    return {"memory_mb": now, "peak_memory_mb": peak}
