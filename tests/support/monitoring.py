"""Queries of examples/monitoring and of the autoscaler, and the metrics of a server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "monitoring"


def rules() -> dict[str, dict]:
    """The alerts by their names."""
    (group,) = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Titles of panels and their queries."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def autoscaler_query() -> str:
    path = ROOT / "examples" / "kubernetes" / "autoscaling.yaml"
    (query,) = (
        trigger["metadata"]["query"]
        for document in yaml.safe_load_all(path.read_text())
        for trigger in document["spec"]["triggers"]
    )
    return query


def queries() -> list[str]:
    """All of them."""
    found = [rule["expr"] for rule in rules().values()]
    found += [query for _, query in dashboard_queries()]
    return [*found, autoscaler_query()]


def metrics_in(query: str) -> set[str]:
    """Names of the metrics that a query reads: of vLLM, and of its HTTP server."""
    return {*re.findall(r"vllm:\w+|\bhttp_\w+", query)}
