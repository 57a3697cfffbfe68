# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told, judged by its own tool where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from marblemesh.demo.prometheus_config import Target, prometheus_config

RULES = Path(__file__).parents[4] / "manifests/prometheus/rules.yml"
CONFIG = prometheus_config(
    [Target("coordinator", "127.0.0.1:9000"), Target("edge", "127.0.0.1:9001", "/stats")], str(RULES)
)


def test_every_process_is_a_job_of_its_name() -> None:
    jobs = CONFIG["scrape_configs"]
    assert isinstance(jobs, list)
    assert [(job["job_name"], job["metrics_path"]) for job in jobs] == [("coordinator", "/metrics"), ("edge", "/stats")]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_accepts_it(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(json.dumps(CONFIG))
    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, timeout=60)
