"""The metrics that examples/monitoring names are those of a server."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from vllm.v1.metrics.loggers import PrometheusStatLogger

from support.monitoring import ROOT, dashboard_queries, metrics_in, queries, rules
from vllm_nemotron_vl.model_executor.models import nemotron_vl_reuse
from vllm_nemotron_vl.renderers import nemotron_vl_metrics


@pytest.fixture(scope="module")
def exposed(tiny) -> set[str]:
    """Names of the metrics in the registry of a server."""
    # Another module's engine may have unregistered ours.
    nemotron_vl_metrics._counters.cache_clear()
    nemotron_vl_reuse._metric.cache_clear()
    PrometheusStatLogger(EngineArgs(model=str(tiny)).create_engine_config())
    nemotron_vl_reuse._metric().labels("encoded")
    nemotron_vl_metrics._counters()[0].labels("image")
    app = FastAPI()
    attach_router(app)
    client = TestClient(app)
    client.get("/v1/models")
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {sample.name for family in families for sample in family.samples}


@pytest.mark.parametrize("query", queries())
def test_the_metrics_of_a_query_exist(exposed, query):
    assert metrics_in(query) <= exposed


@pytest.mark.parametrize("query", queries())
def test_a_query_reads_no_other_job(query):
    assert not re.search(r'(vllm:|\bhttp_)\w+\b(?!\{job="nemotron-vl")', query)


def test_the_metrics_of_this_package_are_shown():
    shown = set().union(*(metrics_in(query) for _, query in dashboard_queries()))
    assert {
        "vllm:mm_tiles_total",
        "vllm:mm_prompt_tokens_total",
        "vllm:mm_requests_refused_total",
    } <= shown


@pytest.mark.parametrize("alert", rules())
def test_an_alert_is_explained_and_fires_in_the_tests(alert):
    for path in (
        "docs/monitoring.md",
        "examples/monitoring/rules_test.yaml",
        "tests/examples/test_prometheus.py",
    ):
        assert alert in (ROOT / path).read_text()
