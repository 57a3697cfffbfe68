# SPDX-License-Identifier: Apache-2.0
"""Prometheus' configuration as a dictionary (JSON is YAML): what it scrapes, under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A second: in a demo one wants to see the certificates change, and there are seven targets.
SCRAPE_INTERVAL = "1s"


@dataclass(frozen=True, slots=True)
class Target:
    """One process that shows metrics over plain HTTP on loopback."""

    name: str
    address: str
    path: str = "/metrics"


def prometheus_config(targets: Sequence[Target], rules: str) -> dict[str, object]:
    """One job per target, named after it. `rules` is the path of the file with recording and alerting rules."""
    return {
        "global": {
            "scrape_interval": SCRAPE_INTERVAL,
            "scrape_timeout": SCRAPE_INTERVAL,
            "evaluation_interval": SCRAPE_INTERVAL,
        },
        "rule_files": [rules],
        "scrape_configs": [
            {"job_name": t.name, "metrics_path": t.path, "static_configs": [{"targets": [t.address]}]} for t in targets
        ],
    }
