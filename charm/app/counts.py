"""What the server has done since it started: the reply to GET /metrics as the text that Prometheus scrapes."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

__all__ = ["CONTENT_TYPE_LATEST", "format_counts"]

_TOTALS = ("requests", "images", "batches", "tokens", "model_seconds")


def format_counts(counts: Mapping[str, Any], descriptions: Mapping[str, Any]) -> bytes:
    """Formats the server's counts as text for Prometheus; `descriptions`, of openapi.json, say what they mean."""
    families: list[Metric] = []
    for name, value in counts.items():
        told, called = descriptions[name]["description"], f"charm_{name}"
        if isinstance(value, dict):
            family = CounterMetricFamily(called, told, labels=["reason"])
            for reason, count in value.items():
                family.add_metric([reason], count)
            families.append(family)
        elif name in _TOTALS:
            families.append(CounterMetricFamily(called, told, value=value))
        else:
            families.append(GaugeMetricFamily(called, told, value=value))
    text: bytes = generate_latest(SimpleNamespace(collect=lambda: families))
    return text
