# SPDX-License-Identifier: Apache-2.0
"""What a worker says of itself on several pages, as one report. Pure: pages in, plain values out, ready for JSON.

Numbers come from /metrics, which every worker serves; addresses, endpoints and reasons from the other pages, which one
under SGX does not have: there they are None or empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from marblemesh.cli.proxy_pages import Pages

Json = dict[str, Any]
_PREFIX = "marblemesh_worker_"
Samples = Mapping[str, list[tuple[dict[str, str], float]]]


def report(pages: Pages, now: datetime) -> Json:
    """Everything that `proxy status` prints. Raises ValueError or KeyError if the pages are not a worker's."""
    samples = _samples(pages.metrics)
    dump = pages.details.get("config_dump", {})
    (who, _) = samples["info"][0]
    return {
        "marble": {"type": who["marble_type"], "uuid": who["uuid"], "simulation": who["simulation"] == "true"},
        "ready": pages.ready,
        "missing": pages.why.splitlines(),
        "numbers_only": not pages.details,
        "revoked": bool(_one(samples, "revoked")),
        "started_offline": {
            "offline": bool(_one(samples, "started_offline")),
            "coordinator_heard": dump.get("started_offline"),
        },
        "app": {
            "running": bool(_one(samples, "app_running")),
            "restarts": int(_one(samples, "app_restarts_total")),
            "last_status": dump.get("app", {}).get("last_status"),
        },
        "processes": {
            "running": int(_one(samples, "relay_processes")),
            "configured": int(_one(samples, "relay_processes_configured")),
            "restarts": int(_one(samples, "relay_process_restarts_total")),
            "cpu_seconds": round(sum(value for _, value in samples["relay_cpu_seconds_total"]), 2),
        },
        "certificates": _certificates(samples, now),
        "coordinator": _coordinator(samples, dump.get("control_plane", {})),
        "listeners": _listeners(samples, dump.get("relay") or {}),
        "clusters": pages.details.get("clusters", []),
    }


def _samples(page: str) -> Samples:
    """By name without our prefix: labels and value."""
    found: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name.removeprefix(_PREFIX)].append((sample.labels, sample.value))
    return found


def _one(samples: Samples, name: str) -> float:
    return samples[name][0][1] if samples[name] else 0.0


def _certificates(samples: Samples, now: datetime) -> list[Json]:
    issued = _one(samples, "certificate_issued_timestamp_seconds")
    return [
        {
            "name": labels["certificate"],
            "issued": _time(issued) if labels["certificate"] == "identity" and issued else None,
            "expires": _time(value),
            "seconds_left": int(value - now.timestamp()),
        }
        for labels, value in samples["certificate_expiry_timestamp_seconds"]
    ]


def _coordinator(samples: Samples, dump: Json) -> Json:
    counts = {
        kind: {labels["type"]: int(value) for labels, value in samples[f"xds_{kind}_total"]}
        for kind in ("updates", "nacks")
    }
    at = {labels["type"]: _time(value) for labels, value in samples["xds_last_nack_timestamp_seconds"]}
    reasons = dump.get("last_nacks", {})
    return {
        "connected": bool(_one(samples, "control_plane_connected")),
        "attempts": int(_one(samples, "control_plane_attempts_total")),
        "reactivations": int(_one(samples, "reactivations_total")),
        "last_error": dump.get("last_error") or None,
        "not_in_force": dump.get("not_in_force") or None,
        **counts,
        "last_nacks": {kind: {"at": time, "reason": reasons.get(kind, {}).get("reason")} for kind, time in at.items()},
    }


def _listeners(samples: Samples, relay: Json) -> list[Json]:
    places = {entry["name"]: entry for side in ("inbound", "outbound") for entry in relay.get(side, [])}
    names = dict.fromkeys([*places, *(labels["listener"] for labels, _ in samples["connections_accepted_total"])])
    return [_listener(name, samples, places.get(name)) for name in names]


def _listener(name: str, samples: Samples, place: Json | None) -> Json:
    def of(metric: str) -> Iterable[tuple[dict[str, str], float]]:
        return ((labels, value) for labels, value in samples[metric] if labels["listener"] == name)

    def number(metric: str, **wanted: str) -> int:
        return int(sum(value for labels, value in of(metric) if wanted.items() <= labels.items()))

    def by(metric: str, label: str) -> dict[str, int]:
        return {labels[label]: int(value) for labels, value in of(metric)}

    return {
        "name": name,
        "listen": None if place is None else place["listen"],
        "active": number("connections_active"),
        "established": number("connections_established_total"),
        "accepted": number("connections_accepted_total"),
        "received": number("bytes_total", direction="received"),
        "sent": number("bytes_total", direction="sent"),
        "refused": by("connections_refused_total", "reason"),
        "ended": by("connections_ended_total", "reason"),
        "handshake_failures": by("handshake_failures_total", "reason"),
        "peers": by("peer_connections_total", "peer"),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
