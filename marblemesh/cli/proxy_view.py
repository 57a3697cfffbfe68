# SPDX-License-Identifier: Apache-2.0
"""A worker's report for people: facts first, then one table for each kind of thing that there can be several of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from marblemesh.cli.output import print_facts, print_table
from marblemesh.client.answer import printable

Json = dict[str, Any]
_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(report: Json) -> None:
    """Print it."""
    print_facts(_facts(report))
    _table(
        "Certificates",
        ("NAME", "ISSUED", "EXPIRES", "LEFT"),
        [
            (entry["name"], _moment(entry["issued"]), _moment(entry["expires"]), _duration(entry["seconds_left"]))
            for entry in report["certificates"]
        ],
    )
    _table(
        "Listeners",
        ("NAME", "LISTENS AT", "OPEN", "SERVED", "RECEIVED", "SENT", "PEERS", "REFUSED OR CUT OFF"),
        [_listener(entry) for entry in report["listeners"]],
    )
    _table("Peers' endpoints", ("LISTENER", "ENDPOINT", "HEALTH", "IN FLIGHT", "FAILURES"), _endpoints(report))
    _table(
        "Refused pushes",
        ("TYPE", "LAST", "TIMES", "WHY"),
        [
            (kind, _moment(nack["at"]), str(report["coordinator"]["nacks"].get(kind, 0)), _text(nack["reason"], 600))
            for kind, nack in report["coordinator"]["last_nacks"].items()
        ],
    )
    if report["numbers_only"]:
        typer.echo("\nThis worker serves numbers only, as under SGX: addresses, endpoints and reasons are in its log.")


def _facts(report: Json) -> Json:
    marble, app, processes = report["marble"], report["app"], report["processes"]
    simulated = " (simulation)" if marble["simulation"] else ""
    facts: Json = {
        "Marble": f"{_text(marble['type'])} {_text(marble['uuid'])}{simulated}",
        "Ready": "yes" if report["ready"] else "NO: " + "; ".join(map(_text, report["missing"])),
        "Coordinator": _coordinator(report["coordinator"]),
        "App": _app(app),
    }
    if report["started_offline"]["offline"]:
        heard = _moment(report["started_offline"]["coordinator_heard"])
        facts["Started"] = f"WITHOUT the Coordinator, heard last {heard}"
    if (why := report["coordinator"]["not_in_force"]) is not None:
        facts["Not in force"] = _text(why, 600)
    if processes["configured"] > 1:
        restarts = f", {processes['restarts']} restarted" if processes["restarts"] else ""
        facts["Processes"] = f"{processes['running']} of {processes['configured']} relay{restarts}"
    facts["CPU"] = f"{processes['cpu_seconds']:g} s"
    return facts


def _coordinator(found: Json) -> str:
    pushes = f"{sum(found['updates'].values())} pushes taken, {sum(found['nacks'].values())} refused"
    again = f", activated again {found['reactivations']} times" if found["reactivations"] else ""
    if found["connected"]:
        return f"connected, {pushes}{again}"
    why = f": {_text(found['last_error'])}" if found["last_error"] else ""
    return f"NOT connected after {found['attempts']} attempts{why}; {pushes}{again}"


def _app(app: Json) -> str:
    ended = "" if app["last_status"] is None else f", ended with status {app['last_status']} before"
    return ("running" if app["running"] else "NOT running") + f", {app['restarts']} restarts{ended}"


def _listener(entry: Json) -> tuple[str, ...]:
    refusals = {
        word: entry["refused"].get(word, 0) + entry["ended"].get(word, 0) for word in entry["refused"] | entry["ended"]
    }
    return (
        _text(entry["name"]),
        _text(entry["listen"]),
        str(entry["active"]),
        str(entry["established"]),
        _size(entry["received"]),
        _size(entry["sent"]),
        _counts(entry["peers"]),
        _counts(refusals),
    )


def _endpoints(report: Json) -> list[tuple[str, ...]]:
    return [
        (
            _text(cluster["name"]),
            _text(endpoint["address"]),
            f"out for {endpoint['ejected_for_seconds']:g} s" if endpoint["ejected_for_seconds"] else "in",
            str(endpoint["in_flight"]),
            str(endpoint["failures_in_a_row"]),
        )
        for cluster in report["clusters"]
        for endpoint in cluster["endpoints"]
    ]


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if rows:
        typer.echo(f"\n{title}")
        print_table(head, rows)


def _counts(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{_text(word)} {count}" for word, count in most_first) or "-"


def _text(value: object, limit: int = 120) -> str:
    return "-" if value is None else printable(str(value), limit)


def _moment(text: str | None) -> str:
    return "-" if text is None else _text(text)[:19].replace("T", " ")


def _duration(seconds: int) -> str:
    if seconds <= 0:
        return "EXPIRED"
    for unit, size in (("years", 31_557_600), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds} s"


def _size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:g} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"
