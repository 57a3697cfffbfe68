# SPDX-License-Identifier: Apache-2.0
"""Our own counters and histograms read as prometheus_client's do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from xds_server.tallies import Spreads, Tallies

EDGES = (0.001, 0.5, 1, 10)


def without_created(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(EDGES) | st.floats(0, 100)), max_size=20))
def test_they_are_exposed_as_the_librarys_own(seen: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts, counter = Tallies("n", "some", "k", ours), Counter("n", "some", ("k",), registry=theirs)
    spreads, histogram = (
        Spreads("h", "x", EDGES, ours, "k"),
        Histogram("h", "x", ("k",), buckets=EDGES, registry=theirs),
    )
    single, alone = Spreads("s", "y", EDGES, ours), Histogram("s", "y", buckets=EDGES, registry=theirs)
    for label, value in seen:
        for count, spread, whole in ((counts, spreads, single), (counter, histogram, alone)):
            count.labels(label).inc(value)
            spread.labels(label).observe(value)
            whole.observe(value)
    assert without_created(generate_latest(ours)) == without_created(generate_latest(theirs))
