# SPDX-License-Identifier: Apache-2.0
"""The example manifest is one that a Coordinator takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib.resources import files

from manifests.parse import parse

EXAMPLE = (files("manifests") / "examples/emojivoto.json").read_bytes()


def test_the_example_parses_without_a_warning() -> None:
    assert parse(EXAMPLE).warnings == ()


def test_only_who_must_may_connect() -> None:
    tls = parse(EXAMPLE).tls
    assert {tag: [incoming.peers for incoming in entry.incoming] for tag, entry in tls.items()} == {
        "web": [("vote-bot",)],
        "emoji": [("web",)],
        "voting": [("web",)],
        "vote-bot": [],
    }


def test_its_gateway_certificate_outlives_the_readers_patience() -> None:
    edge = parse(EXAMPLE).mesh.gateways["edge"].certificate
    assert edge.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365)
