# SPDX-License-Identifier: Apache-2.0
"""Every reason for which a connection is refused or ended has one word, and the guide explains each of them."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from enclave_proxy.access_log import access_log
from enclave_proxy.admission import Refused
from enclave_proxy.counters import ListenerCounters, Refusal
from enclave_proxy.local_peer import Unwelcome
from enclave_proxy.metrics import make_registry
from enclave_proxy.relay import Relay
from enclave_proxy.trace import Trace
from sds.logs import get_logger
from tests.kit.mesh_relay import App, inbound
from tests.kit.pki import shared_ca
from tests.unit.enclave_proxy.relay.test_tls import ALERTED
from tests.unit.enclave_proxy.test_admin import Counted, starting

GUIDE = (Path(__file__).parents[3] / "docs/worker.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+)` \| [^|]+ \| (refused|ended|refused, ended) \| ([^|]+) \|$", re.MULTILINE)
SECTION = GUIDE.partition("### Why a connection was refused or ended")[2].partition("\n## ")[0]
ROWS = {word: alert for word, _, alert in ROW.findall(SECTION)}
# The alerts that a real client gets, as `test_tls` proves them: OpenSSL's names for them, without the version.
SENT = {reason: re.sub(r"^(SSLV3|TLSV1|TLSV13)_ALERT_", "", alert).lower() for _, alert, reason in ALERTED}


def test_the_guide_has_a_row_for_each_reason_and_for_nothing_else() -> None:
    assert list(ROWS) == [reason.value for reason in Refusal]
    assert len(ROW.findall(SECTION)) == len(Refusal)


@pytest.mark.parametrize("reason", Refusal)
def test_the_guide_names_the_alert_that_is_sent_or_none(reason: Refusal) -> None:
    if reason in SENT:
        assert re.match(rf"`{SENT[reason]}`", ROWS[reason.value])
    else:
        assert ROWS[reason.value] == "-"


async def test_every_reason_is_a_label_of_the_metrics_in_the_same_word() -> None:
    health, relay = starting(), Counted()
    health.relay = relay
    numbers = relay.counters.of("in")
    for reason in Refusal:
        numbers.refused[reason] = numbers.ended[reason] = numbers.handshakes_failed[reason] = 1
    page = generate_latest(make_registry(health)).decode()
    for family in ("connections_refused", "connections_ended", "handshake_failures"):
        (found,) = [f for f in text_string_to_metric_families(page) if f.name == f"marblemesh_worker_{family}"]
        assert [sample.labels["reason"] for sample in found.samples] == [reason.value for reason in Refusal]


class Noted:
    """A log that remembers."""

    def __init__(self) -> None:
        self.reasons: list[object] = []

    def info(self, event: str, **fields: object) -> None:
        assert event == "connection refused"
        self.reasons.append(fields["reason"])

    def error(self, event: str, **fields: object) -> None:
        raise AssertionError(event)


async def test_every_reason_is_the_same_word_in_the_log(tmp_path: Path) -> None:
    log = Noted()
    relay = Relay(log)
    route = inbound(shared_ca(), App(tmp_path / "app.sock"))
    for reason in Refusal:
        relay._budget._second = -1  # a new second has begun
        relay._refused(route, Refused(reason, "for a test"), None)
    assert log.reasons == [reason.value for reason in Refusal]
    await relay.close()


async def test_every_reason_is_the_same_word_in_the_access_log(tmp_path: Path) -> None:
    path, route = tmp_path / "access.log", inbound(shared_ca(), App(tmp_path / "app.sock"))
    async with access_log(str(path), get_logger("test")) as log:
        with socket.socket() as connection:
            for reason in Refusal:
                Trace(connection, ListenerCounters(), log).ended(route, reason)
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == [r.value for r in Refusal]


@pytest.mark.parametrize("reason", Unwelcome)
def test_the_guide_names_the_reasons_of_local_sockets(reason: Unwelcome) -> None:
    assert f"`{reason.value}`" in SECTION.partition("Local clients")[2]
