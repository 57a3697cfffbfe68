# SPDX-License-Identifier: Apache-2.0
"""What an activation leaves behind: in the store, in the mesh, and for a Coordinator that is started again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sds.identity import marble_identity
from tests.kit.coordinator import Bench, manifest
from tests.kit.users import user
from xds_server.activation import Grant
from xds_server.mesh import AccessDenied

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture
def bench(machine: Path) -> Iterator[Bench]:
    made = Bench.make(machine)
    yield made
    made.own_quote.stop()


def leaf(grant: Grant) -> x509.Certificate:
    return x509.load_pem_x509_certificates(grant.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])[0]


async def test_only_a_type_with_a_budget_costs_a_commit(bench: Bench) -> None:
    marbles = {"web": {"Package": "app"}, "limited": {"Package": "app", "MaxActivations": 2}}
    await bench.coordinator.set_manifest(manifest(Marbles=marbles))
    await bench.activate()
    assert len(bench.store.committed) == 1
    await bench.activate(marble_type="limited")
    assert bench.store.committed[1].activations == {"limited": 1}


# --- after a restart


async def test_a_restarted_coordinator_readmits_by_what_the_certificate_says(bench: Bench, machine: Path) -> None:
    await bench.coordinator.set_manifest(manifest())
    certificate = leaf(await bench.activate(uuid=UUID))
    again = bench.restarted(machine)
    assert again.coordinator.manifest() == bench.coordinator.manifest()
    client = again.mesh.authenticate(certificate)
    assert (client.name, client.uuid) == ("web", UUID)
    served = again.mesh._marbles["web", UUID]
    assert marble_identity(served.identity.leaf).claims == marble_identity(certificate).claims
    assert served.ip_addresses
    again.own_quote.stop()


async def test_it_does_not_readmit_what_the_manifest_no_longer_allows(bench: Bench, machine: Path) -> None:
    users = {"dave": {"Certificate": user("dave").certificate.decode(), "Roles": ["r"]}}
    role = {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]}
    await bench.coordinator.set_manifest(manifest(Users=users, Roles={"r": role}))
    certificate = leaf(await bench.activate(uuid=UUID))
    records = replace(bench.store.committed[-1], security_versions={"app": 9})
    again = Bench.make(machine, store=bench.store, records=records)
    with pytest.raises(AccessDenied, match=r"^revoked: the manifest no longer allows this marble$"):
        again.mesh.authenticate(certificate)
    again.own_quote.stop()


async def test_without_attestation_a_marble_needs_no_quote_and_its_certificate_says_so(machine: Path) -> None:
    bench = Bench.make(machine, insecure=True)
    await bench.coordinator.set_manifest(manifest())
    certificate = leaf(await bench.activate(quote=b""))
    claims = marble_identity(certificate).claims or {}
    assert claims["insecure"] is True
    assert (await bench.coordinator.quote(b"nonce")).quote is None
    attesting = bench.restarted(machine)  # the same CA, but now only what was attested counts
    with pytest.raises(AccessDenied):
        attesting.mesh.authenticate(certificate)
    for made in (bench, attesting):
        made.own_quote.stop()


async def test_instances_that_never_come_back_are_forgotten(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Mesh={"CertificateLifetime": "1h"}))
    for _ in range(3):
        await bench.activate()
    bench.clock.forward(timedelta(minutes=45))
    assert await bench.coordinator.renewer.step() == 3
    bench.clock.forward(timedelta(minutes=45))
    await bench.coordinator.renewer.step()
    assert not bench.mesh._marbles
    bench.clock.forward(timedelta(hours=2))
    assert await bench.coordinator.renewer.step() == 0
