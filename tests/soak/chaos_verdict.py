# SPDX-License-Identifier: Apache-2.0
"""What client and apps have recorded of the same connections, held against each other. No I/O.

A connection's data were right as far as they came (each side has compared every byte), and an end that looked like one
was one. What an app that was killed had sent is not known, and an end that a killed process causes looks like one: the
kernel closes its sockets in good order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]
# Until an app hears of the end of a connection that broke after the client had all: the worker's timeouts, and slack.
LAST = 40.0


@dataclass
class Verdict:
    """How many of what, and whatever must never happen."""

    clean: Counter[str] = field(default_factory=Counter)
    """by target and mode: whole in every direction that carries data, hashes agree, ended by both"""
    ended: Counter[str] = field(default_factory=Counter)
    """by target and mode, which the worker had to end, and did"""
    broken: Counter[str] = field(default_factory=Counter)
    """by target and what the client saw"""
    unknown: int = 0
    """connections whose app was killed"""
    violations: list[str] = field(default_factory=list)


def is_clean(client: Record) -> bool:
    """Whether the client has all that it can know."""
    match client["mode"]:
        case "UP":
            return bool(client.get("sent")) and client["answer"] == client["expected"]
        case "DOWN":
            return bool(client.get("down_complete")) and client["end"] == "CLEAN"
        case "BOTH":
            return bool(client.get("sent") and client["down_complete"]) and client["end"] != "BROKEN"
    return False


def judge(
    clients: Sequence[Record], apps: Mapping[str, Sequence[Record]], deaths: Mapping[str, Sequence[float]]
) -> Verdict:
    """`apps` and `deaths` by target: the app's records, and when app or worker were killed (Unix time)."""
    verdict = Verdict()
    begun = {name: {r["begun"] for r in records if "begun" in r} for name, records in apps.items()}
    by_number = {name: {r["number"]: r for r in records if "number" in r} for name, records in apps.items()}
    for name, records in apps.items():
        verdict.violations += [f"{name}'s app got what no client has sent: {r}" for r in records if r.get("foreign")]
        verdict.violations += [f"an impostor reached {name}'s app: {r}" for r in records if r.get("number") == 0]
        verdict.violations += [f"{name}'s app got wrong data: {r}" for r in records if r.get("wrong")]
    for client in clients:
        name = client["target"]
        app = by_number[name].get(client["number"])
        others = [other for other, numbers in begun.items() if other != name and client["number"] in numbers]
        verdict.violations += [f"meant for {name}, and served by {other}: {client}" for other in others]
        if app is None and is_clean(client):
            if client["number"] not in begun[name]:
                verdict.violations.append(f"an end without an app: {client}")
            elif not any(
                client["began"] <= time <= client["began"] + client["seconds"] + LAST for time in deaths[name]
            ):
                verdict.violations.append(f"{name}'s app has never heard of the end: {client}")
        died = any(client["began"] - 2 <= time <= client["began"] + client["seconds"] + 2 for time in deaths[name])
        verdict.violations += [f"{text}: {client} {app}" for text in _wrong(client, app, died=died)]
        _count(verdict, client, app)
    return verdict


def _wrong(client: Record, app: Record | None, *, died: bool) -> list[str]:
    found = []
    mode, end = client["mode"], client["end"]
    if client.get("hung"):
        return [f"hung, {client['hung']}"]
    if client["wrong"]:
        found.append("the client got wrong data")
    if mode == "UP" and len(client["answer"]) == 64 and client["answer"] != client["expected"]:
        found.append("the app has hashed something else than what was sent")
    if app is not None and mode in ("UP", "BOTH") and app["end"] == "CLEAN" and not app["up_complete"]:
        found.append("what was cut off looked like an end to the app")
    if not died and mode in ("DOWN", "BOTH") and end == "CLEAN" and not client["down_complete"]:
        found.append("what was cut off looked like an end to the client")
    if not died and mode in ("SILENT", "HALF") and end == "CLEAN":
        found.append("what the worker has ended looked like an end of the app's")
    if app is not None and mode == "DOWN" and len(app["answer"]) == 64 and app["answer"] != client["digest"]:
        found.append("the client's hash has changed on its way")
    if app is not None and mode == "UP" and is_clean(client) and app["digest"] != client["expected"]:
        found.append("hashes differ")
    return found


def _count(verdict: Verdict, client: Record, app: Record | None) -> None:
    kind = f"{client['target']} {client['mode']}"
    if is_clean(client):
        if app is None:
            verdict.unknown += 1
        else:
            verdict.clean[kind] += 1
    elif client["mode"] in ("SILENT", "HALF"):
        verdict.ended[kind] += 1
    else:
        verdict.broken[f"{client['target']}: {client['why'] or 'ended before it was whole'}"] += 1
