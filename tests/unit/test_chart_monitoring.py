"""Alerts and dashboard speak of metrics that exist, with labels that they have; every alert has its runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry

from rowmill.status import RunStatus
from rowmill.telemetry.metrics import EngineMetrics, WorkerMetrics
from rowmill_operator.kube.metrics import JobNumbers, JobsCollector, OperatorMetrics
from tests.unit.chart_helpers import CHART, EXISTING, ROOT, merged, of_kind, render

BASE = "https://docs.example/install.md"
MONITORED = merged(
    EXISTING,
    {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "runbookBase": BASE},
            "dashboard": {"enabled": True, "labels": {"team": "data"}},
        }
    },
)
TARGET = {"namespace", "pod", "container", "rowmill_dev_job"}
"""Labels that Prometheus gives each series of a pod."""

MONITOR: dict[str, Any] = {
    "type": "object",
    "required": ["selector"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object", "required": ["matchLabels"]},
        "namespaceSelector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"any": {"type": "boolean"}, "matchNames": {"type": "array", "items": {"type": "string"}}},
        },
        "podTargetLabels": {"type": "array", "items": {"type": "string"}},
    },
}
ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["port"],
        "additionalProperties": False,
        "properties": {
            "port": {"const": "http"},
            "path": {"const": "/metrics"},
            "interval": {"type": "string", "pattern": r"^\d+s$"},
            "honorLabels": {"type": "boolean"},
        },
    },
}


def series() -> dict[str, set[str]]:
    """Each series that operator and workers tell, with its labels, by having them tell everything once."""
    registry = CollectorRegistry()
    worker = WorkerMetrics(registry)
    worker.failed({"Timeout": 1})
    worker.attempted(None)
    worker.retried("Timeout")
    engine = EngineMetrics(registry)
    engine.fed("run", rows=1, size=1, seconds=1)
    engine.epoch_began("run")
    engine.gap_found("run", 1)
    engine.window("run", rows=1, size=1)
    engine.backlog("run", 1)
    engine.workers_desired("run", 1)
    operator = OperatorMetrics(registry)
    operator.called("get", "pods", 200)
    operator.status_written("ok")
    operator.event_written("ok")
    operator.notified("delivered")
    registry.register(JobsCollector(lambda: [JobNumbers("n", "j", "Running", RunStatus(total=1))]))
    return {
        sample.name: {*sample.labels, *([] if sample.name.startswith("rowmill_job") else TARGET)}
        for metric in registry.collect()
        for sample in metric.samples
    }


KNOWN = series()


def wrong(expression: str) -> list[str]:
    """Series and labels of an expression that nobody tells."""
    found = []
    text = re.sub(r'"[^"]*"', '""', expression)
    used: set[str] = set()
    for name, labels in re.findall(r"\b(rowmill_\w+)(?:\{([^}]*)\})?", text):
        if name == "rowmill_dev_job":
            continue
        has = KNOWN.get(name)
        if has is None:
            found.append(f"no series {name}")
            continue
        used |= has
        found += [f"{name} has no label {x}" for x in re.findall(r"(\w+)\s*[=!]", labels) if x not in has]
    for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
        found += [f"nothing has a label {x}" for x in re.findall(r"\w+", names) if x not in used]
    if text.count("(") != text.count(")"):
        found.append("brackets")
    return found


def alerts(values: dict[str, Any] = MONITORED) -> list[dict[str, Any]]:
    (rule,) = of_kind(render(values), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.mark.parametrize(
    "name", [a["alert"] for a in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text("utf-8"))["alerts"]]
)
def test_an_alert(name: str) -> None:
    (alert,) = [a for a in alerts() if a["alert"] == name]
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert wrong(alert["expr"]) == []
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert re.fullmatch(r"\d+m", alert["for"])
    anchor = alert["alert"].lower()
    assert alert["annotations"]["runbook_url"] == f"{BASE}#{anchor}"
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "install.md").read_text("utf-8"), re.MULTILINE)
    assert alert["alert"] in headings, f"docs/install.md has no section {alert['alert']}: what is to be done?"
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", alert["expr"]))))
    named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert named <= grouped, "the summary names a label that the expression takes away"


def test_the_operator_that_is_missed_is_this_release() -> None:
    (down,) = [a for a in alerts() if a["alert"] == "RowmillOperatorDown"]
    pattern = re.search(r'pod=~"([^"]+)"', down["expr"])
    assert pattern
    assert re.fullmatch(pattern[1], "mill-rowmill-6f45753bfd-x7k2p")
    assert not re.fullmatch(pattern[1], "mill-rowmill-postgres-6f45753bfd-x7k2p")
    assert 'namespace="batch"' in down["expr"]
    (deployment,) = of_kind(render(MONITORED), "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["name"] == "operator"


def test_without_an_address_the_runbook_is_named() -> None:
    for alert in alerts(merged(MONITORED, {"monitoring": {"prometheusRule": {"runbookBase": ""}}})):
        assert alert["annotations"]["runbook"] == f"docs/install.md#{alert['alert'].lower()}"


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rate(rowmill_worker_row_total[5m])", "no series rowmill_worker_row_total"),
        ('rate(rowmill_worker_rows_total{sate="Failed"}[5m])', "rowmill_worker_rows_total has no label sate"),
        ("sum by (runs) (rowmill_engine_backlog_rows)", "nothing has a label runs"),
        ("sum(rate(rowmill_worker_rows_total[5m])", "brackets"),
    ],
)
def test_an_expression_that_is_wrong_is_noticed(expression: str, said: str) -> None:
    assert wrong(expression) == [said]


def dashboard() -> dict[str, Any]:
    (found,) = of_kind(render(MONITORED), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["labels"]["team"] == "data"
    loaded: dict[str, Any] = json.loads(found["data"]["rowmill.json"])
    return loaded


def expressions(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"].removeprefix("label_values(").rpartition(",")[0]


def test_the_dashboard_asks_for_what_there_is() -> None:
    assert {what: found for what, e in expressions(dashboard()) if (found := wrong(e))} == {}


def test_the_dashboard_is_laid_out() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert all(panel["description"] for panel in panels)


def test_every_important_series_is_shown() -> None:
    text = " ".join(expression for _, expression in expressions(dashboard()))
    wanted = (
        *("rows_total", "row_duration_seconds", "slots_available", "rows_in_flight", "retries_total"),
        *("rows_handed_back_total", "locks_held", "backlog_rows", "rows_fed_total", "reconcile_seconds"),
        *("loop_lag_seconds", "api_calls_total", "recorded_rows", "total_rows"),
    )
    assert [name for name in wanted if f"_{name}" not in text] == []


def test_monitors_find_the_pods() -> None:
    objects = render(MONITORED)
    operator, workers = of_kind(objects, "PodMonitor")
    for monitor in (operator, workers):
        spec = dict(monitor["spec"])
        jsonschema.validate(spec.pop("podMetricsEndpoints"), ENDPOINTS)
        jsonschema.validate(spec, MONITOR)
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (deployment,) = of_kind(objects, "Deployment")
    template = deployment["spec"]["template"]
    assert operator["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert {p["name"] for p in template["spec"]["containers"][0]["ports"]} == {"http"}
    assert workers["spec"]["namespaceSelector"] == {"any": True}
    bounded = render(merged(MONITORED, {"watchNamespaces": ["support"]}))
    assert of_kind(bounded, "PodMonitor")[1]["spec"]["namespaceSelector"] == {"matchNames": ["support"]}


def test_a_service_monitor_takes_the_place_of_the_operators_pod_monitor() -> None:
    values = merged(MONITORED, {"monitoring": {"serviceMonitor": {"enabled": True}}})
    objects = render(values)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    spec = dict(monitor["spec"])
    jsonschema.validate(spec.pop("endpoints"), ENDPOINTS)
    jsonschema.validate(spec, MONITOR)
    (service,) = of_kind(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [m["metadata"]["name"] for m in of_kind(objects, "PodMonitor")] == ["mill-rowmill-workers"]


def test_nothing_of_it_without_being_asked_for() -> None:
    assert not {o["kind"] for o in render(EXISTING)} & {"PodMonitor", "ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert (CHART / "files" / "dashboard.json").is_file()
