# SPDX-License-Identifier: Apache-2.0
"""Whatever the order in which workers are told, answer, refuse or say nothing: nobody is sent a certificate of a new
root before every connected worker has acknowledged the bundle that holds it, or the bounded wait for it has passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.ca import CertificateAuthority
from sds.discovery import DeltaStream, SotwStream, Stream, View
from sds.material import Identity, TrustBundle
from sds.resources import SECRET, read_secret
from sds.wire import discovery_pb2
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import Client
from xds_server.rotation import Pace, Phase

CA = CertificateAuthority.create(["localhost"], [], datetime.now(UTC))
MANIFEST = manifest({"web": {"Incoming": [{"Port": "8080"}]}}, {"web": ["web"]})
NAMES = ["default", "ROOTCA"]


@dataclass
class Worker:
    """One client on its stream, and what it has acknowledged."""

    client: Client
    stream: Stream
    view: View = field(default_factory=dict)
    roots: tuple[x509.Certificate, ...] = ()
    offered: tuple[x509.Certificate, ...] = ()
    nonce: str = ""

    def ask(self, *, nonce: str = "", error: bool = False) -> None:
        if isinstance(self.stream, SotwStream):
            whole = discovery_pb2.DiscoveryRequest(type_url=SECRET, resource_names=NAMES, response_nonce=nonce)
            if error:
                whole.error_detail.code = 13
            self.stream.receive(whole)
            return
        names = [] if nonce else NAMES
        delta = discovery_pb2.DeltaDiscoveryRequest(
            type_url=SECRET, resource_names_subscribe=names, response_nonce=nonce
        )
        if error:
            delta.error_detail.code = 13
        self.stream.receive(delta)


class Village:
    """Three workers, and what the xDS server does for them, without sockets and with a clock that stands still."""

    def __init__(self, kind: type[Stream]) -> None:
        self.town = Town(MANIFEST, CA, pace=Pace())
        self.town.renew_when_asked()
        self.workers = []
        for number in range(3):
            marble = self.town.activate("web")
            client = self.town.mesh.authenticate(marble.identity.leaf)
            self.workers.append(Worker(client, kind(identifier="t", nonce_prefix=f"{number}-")))
        for worker in self.workers:
            worker.ask()
        self.everybody_takes_everything()

    def everybody_takes_everything(self) -> None:
        for worker in self.workers:
            self.look(worker)
            self.answer(worker, error=False)
            while self.push(worker):
                self.answer(worker, error=False)

    def look(self, worker: Worker) -> None:
        worker.view = self.town.mesh.view(worker.client)
        worker.stream.update(worker.view)

    def push(self, worker: Worker) -> bool:
        if (response := worker.stream.take_response()) is None:
            return False
        worker.nonce = response.nonce
        for name in response.names:
            _, secret = read_secret(worker.view[SECRET][name].body)
            if isinstance(secret, TrustBundle):
                worker.offered = secret.certificates
            elif isinstance(secret, Identity):
                self.check(worker, secret)
        return True

    def check(self, worker: Worker, identity: Identity) -> None:
        issuer = key_of(identity.certificates[1])
        assert issuer in {key_of(root) for root in worker.offered}, "its own bundle was sent to it before"
        if not self.town.mesh.rotation.behind:
            for other in (worker for worker in self.workers if worker.roots):
                assert issuer in {key_of(root) for root in other.roots}, "everybody has acknowledged the root"

    def answer(self, worker: Worker, *, error: bool) -> None:
        if not worker.nonce:
            return
        nonce, worker.nonce = worker.nonce, ""
        if not error:
            worker.roots = worker.offered
        worker.ask(nonce=nonce, error=error)

    def advance(self, seconds: float) -> None:
        self.town.time += timedelta(seconds=seconds)
        mesh = self.town.mesh
        told = (w.view.get(SECRET) is mesh.secrets(w.client) and w.stream.is_current(SECRET) for w in self.workers)
        mesh.advance(answered=all(told))


def key_of(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["look", "push", "answer", "answer", "refuse"]), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([0.05, 0.3, 1.0, 4.0])),
        st.tuples(st.just("update"), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("kind", [SotwStream, DeltaStream], ids=["sotw", "delta"])
@settings(max_examples=15, deadline=None)
@given(script=steps)
def test_no_leaf_leaves_before_its_root_is_acknowledged_by_all(
    kind: type[Stream], script: list[tuple[str, float]]
) -> None:
    village = Village(kind)
    village.town.update()
    for what, argument in script:
        worker = village.workers[int(argument)] if what in ("look", "push", "answer", "refuse") else village.workers[0]
        match what:
            case "look":
                village.look(worker)
            case "push":
                village.push(worker)
            case "answer" | "refuse":
                village.answer(worker, error=what == "refuse")
            case "wait":
                village.advance(argument)
            case "update":
                village.town.update()
    for _ in range(60):
        village.everybody_takes_everything()
        village.advance(1.0)
    assert village.town.mesh.rotation.phase is Phase.SETTLED
    newest = key_of(village.town.ca.marble_root)
    assert {tuple(key_of(root) for root in worker.roots) for worker in village.workers} == {(newest,)}


@pytest.mark.parametrize("kind", [SotwStream, DeltaStream], ids=["sotw", "delta"])
def test_one_worker_that_says_nothing_holds_new_leaves_back_for_ten_seconds(kind: type[Stream]) -> None:
    village = Village(kind)
    silent = village.workers[2]
    village.town.update()
    for worker in village.workers:
        village.look(worker)
        while village.push(worker):
            if worker is not silent:
                village.answer(worker, error=False)
    before = [worker.stream.status[SECRET].acked["default"] for worker in village.workers]
    for _ in range(9):
        village.advance(1.0)
        for worker in village.workers:
            village.look(worker)
            assert not village.push(worker), "nothing new leaves"
    village.advance(1.1)
    assert village.town.mesh.rotation.behind == 1
    for worker in village.workers[:2]:
        village.look(worker)
        assert village.push(worker)
        village.answer(worker, error=False)
        assert worker.stream.status[SECRET].acked["default"] not in before
    village.look(silent)
    assert not village.push(silent), "it has not answered for the bundle yet"
