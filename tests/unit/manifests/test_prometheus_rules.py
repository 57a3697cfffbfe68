# SPDX-License-Identifier: Apache-2.0
"""What operators get for Prometheus and Grafana, judged by Prometheus' own tool and held against docs/metrics.md."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.programs import program

ROOT = Path(__file__).resolve().parents[3]
PROMETHEUS = ROOT / "manifests/prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
DASHBOARD = json.loads((ROOT / "manifests/grafana/marblemesh.json").read_text())
DOCUMENTED = set(re.findall(r"^\| `([a-z_0-9]+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
METRIC = re.compile(r"\b(?:marblemesh|coordinator)_[a-z0-9_]+\b")


def rules(kind: str) -> dict[str, dict[str, Any]]:
    return {rule[kind]: rule for group in RULES["groups"] for rule in group["rules"] if kind in rule}


def exported(name: str) -> bool:
    return name in DOCUMENTED or re.sub(r"_(bucket|sum|count)$", "", name) in DOCUMENTED


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "rules.yml")


def test_every_alert_fires_and_clears() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_every_alert_is_tried() -> None:
    tried = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    assert sorted(test["name"] for test in tried) == sorted(rules("alert"))
    for test in tried:
        firing = [bool(check["exp_samples"]) for check in test["promql_expr_test"]]
        assert True in firing, f"{test['name']} never fires"
        assert firing[-1] is False, f"{test['name']} never clears"


@pytest.mark.parametrize("rule", [*rules("alert").values(), *rules("record").values()], ids=str)
def test_a_rule_uses_metrics_that_exist(rule: dict[str, Any]) -> None:
    used = METRIC.findall(rule["expr"])
    assert [name for name in used if not exported(name)] == []
    recorded = re.findall(r"\bmarblemesh:[a-z0-9_:]+", rule["expr"])
    assert used or recorded
    assert set(recorded) <= set(rules("record"))


@pytest.mark.parametrize("alert", rules("alert").values(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"]["summary"]
    assert len(alert["annotations"]["description"]) > 30


def test_the_dashboard_shows_only_what_exists() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 20
    for expression in expressions:
        assert [name for name in METRIC.findall(expression) if not exported(name)] == [], expression
        assert set(re.findall(r"\bmarblemesh:[a-z0-9_:]+", expression)) <= set(rules("record")), expression


def test_the_dashboard_answers_five_questions_in_order() -> None:
    questions = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert [question[:2] for question in questions] == ["1.", "2.", "3.", "4.", "5."]
    assert all(question.endswith("?") for question in questions)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
