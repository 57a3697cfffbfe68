# SPDX-License-Identifier: Apache-2.0
"""The live view: from what is observed to what is drawn. Pure; `rich` draws it."""

from __future__ import annotations

from datetime import datetime, timedelta

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from marblemesh.demo.observe import MarbleNow, Now

# Eight columns that fit into a terminal of 80: a name that is cut off tells nobody who it is.
COLUMNS = ("Marble", "Instance", "Measured", "Age", "Expires", "Open/all", "Refused", "Control")


def span(duration: timedelta) -> str:
    """A duration in its two largest units: `2h05m`, `4m10s`, `8s`; `over` when it is past."""
    seconds = int(duration.total_seconds())
    if seconds < 0:
        return "over"
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def render(now: Now, started: datetime) -> RenderableType:
    """The whole view."""
    title = "Marbles, attested by simulated hardware: this proves nothing about the host"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for marble in now.marbles:
        table.add_row(*_row(marble, now.at))
    elapsed = span(now.at - started)
    votes = Text(f"Votes          {now.votes} in {elapsed}, ")
    votes.append(f"{now.failures} failed", style="red" if now.failures else "green")
    return Group(
        table,
        Text(f"Coordinator    {now.coordinator}; {now.renewals} certificates renewed"),
        Text(f"Edge           Envoy carries {now.edge_active} connections of ciphertext"),
        votes,
        Text(f"Prometheus     {now.prometheus}"),
        Text("Ctrl-C ends the demo", style="dim"),
    )


def _row(marble: MarbleNow, at: datetime) -> tuple[str | Text, ...]:
    held = marble.certificate
    plane = Text("connected", style="green") if marble.control_plane else Text("away", style="yellow")
    traffic = (f"{marble.active}/{marble.established}", str(marble.refused))
    if held is None:
        return (marble.type, Text("not yet", style="yellow"), "", "", "", *traffic, plane)
    age, left = span(at - held.not_before), span(held.not_after - at)
    return (marble.type, held.uuid[:8], held.measurement[:8], age, left, *traffic, plane)


def line(now: Now) -> str:
    """The view in one line, for where there is no terminal."""
    attested = sum(marble.certificate is not None for marble in now.marbles)
    return (
        f"{attested} of {len(now.marbles)} Marbles attested, {now.votes} votes, {now.failures} failed, "
        f"{now.renewals} certificates renewed, Coordinator: {now.coordinator}"
    )
