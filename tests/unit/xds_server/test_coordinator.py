# SPDX-License-Identifier: Apache-2.0
"""The Coordinator without sockets: states, the manifest, and who becomes a Marble."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sds.attestation.claims import Claims
from sds.attestation.errors import CollateralUnavailable
from sds.attestation.evidence import Evidence
from sds.attestation.policy import Policy
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform, SimulatedTd
from sds.identity import marble_identity
from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle, check_identity
from tests.kit.coordinator import APP, PACKAGE, Bench, manifest
from tests.kit.marble_client import MarbleCredentials
from xds_server.activator import Limits
from xds_server.errors import ActivationRefused, ManifestRefused, NotSet, QuoteUnavailable, WrongState
from xds_server.state import State

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture
def bench(directory: Path) -> Iterator[Bench]:
    made = Bench.make(directory)
    yield made
    made.own_quote.stop()


@pytest.fixture
async def running(bench: Bench) -> Bench:
    await bench.coordinator.set_manifest(manifest())
    return bench


async def refusal(bench: Bench, **changes: object) -> ActivationRefused:
    """Why an activation is refused; and that nothing was issued and the refusal counted."""
    with pytest.raises(ActivationRefused) as caught:
        await bench.activate(**changes)
    assert bench.events.to_json() is None
    assert bench.metric("marblemesh_attestation_refused_total", {"reason": caught.value.reason}) == 1
    assert not bench.mesh._marbles
    return caught.value


# --- states and manifest


def test_a_fresh_coordinator_waits_for_a_manifest(bench: Bench) -> None:
    status = bench.coordinator.status()
    assert (status.code, status.message) == (2, "Coordinator is ready to accept a manifest.")
    with pytest.raises(NotSet, match=r"^requested value not set$"):
        bench.coordinator.manifest()


async def test_a_manifest_is_set_once_and_signed_by_the_root_key(bench: Bench) -> None:
    raw = manifest()
    await bench.coordinator.set_manifest(raw)
    assert bench.coordinator.status().code is State.ACCEPTING_MARBLES
    signed = bench.coordinator.manifest()
    assert signed.raw == raw
    key = bench.coordinator.ca.root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signed.signature, raw, ec.ECDSA(SHA256()))
    with pytest.raises(WrongState, match=r"^server is not in expected state$"):
        await bench.coordinator.set_manifest(raw)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"Packages":\n  oops}', "^unmarshaling manifest: line 2 column 3: "),
        (b"{}", "^checking manifest: no allowed packages defined"),
        (manifest(Marbles={"web": {"Package": "b"}}), "^checking manifest: manifest does not contain marble package b"),
    ],
)
async def test_a_bad_manifest_changes_nothing(bench: Bench, raw: bytes, text: str) -> None:
    with pytest.raises(ManifestRefused, match=text):
        await bench.coordinator.set_manifest(raw)
    assert bench.coordinator.status().code is State.ACCEPTING_MANIFEST


def marble(**members: object) -> dict[str, object]:
    return {"web": {"Package": "app"} | members}


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"Config": {"FeatureGates": ["AzureHSMSealing"]}}, "Config.FeatureGates"),
        ({"Packages": {"app": PACKAGE | {"SNP": {"Measurement": "00" * 48}}}}, "Packages.app.SNP"),
    ],
)
async def test_what_would_have_no_effect_is_refused_by_name(
    bench: Bench, members: dict[str, object], path: str
) -> None:
    with pytest.raises(ManifestRefused) as caught:
        await bench.coordinator.set_manifest(manifest(**members))
    assert str(caught.value).startswith("checking manifest: ")
    assert "not supported by this version" in str(caught.value)
    assert f"(at {path})" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_disabled_sealing_and_plain_braces_are_fine(bench: Bench) -> None:
    env = {"A": {"Data": "{{ no template }}", "NoTemplates": True}}
    await bench.coordinator.set_manifest(
        manifest(Config={"SealMode": "Disabled"}, Marbles=marble(Parameters={"Env": env}))
    )


async def test_parameters_that_no_client_would_take_are_refused_before_they_matter(bench: Bench) -> None:
    files = {f"/{n}": "x" * 1_000_000 for n in range(4)}
    with pytest.raises(ManifestRefused, match=r"at most 3145728 can be sent \(at Marbles.web\)"):
        await bench.coordinator.set_manifest(manifest(Marbles=marble(Parameters={"Files": files})))


# --- own quote


async def test_the_quote_is_bound_to_root_and_nonce(bench: Bench) -> None:
    import hashlib

    await bench.own_quote.start()
    cached = await bench.coordinator.quote(b"")
    assert cached.quote == (await bench.coordinator.quote(b"")).quote
    fresh = await bench.coordinator.quote(b"nonce")
    root = bench.coordinator.ca.root_der
    for quote, nonce in ((cached.quote, b""), (fresh.quote, b"nonce")):
        body = Evidence.parse(quote or b"").quote
        assert hashlib.sha256(root + nonce).digest() + bytes(32) in body
    assert cached.chain_pem.count(b"BEGIN CERTIFICATE") == 2


async def test_a_quoting_service_that_fails_is_named(bench: Bench) -> None:
    class Broken:
        tee = APP

        def issue(self, _: bytes) -> Evidence:
            raise CollateralUnavailable("aesmd does not answer")

    from xds_server.own_quote import OwnQuote

    broken = OwnQuote(Broken(), b"root")  # type: ignore[arg-type]
    with pytest.raises(QuoteUnavailable, match="issuing quote: aesmd does not answer"):
        await broken.get(b"n")
    broken.stop()


# --- activation


async def test_before_a_manifest_nobody_is_activated(bench: Bench) -> None:
    refused = await refusal(bench)
    assert str(refused) == "cannot accept marbles in current state"
    assert refused.grpc_status.name == "FAILED_PRECONDITION"


async def test_an_activated_marble_gets_an_identity_that_peers_accept(running: Bench) -> None:
    grant = await running.activate(uuid=UUID.upper())
    env = grant.env
    identity = Identity(
        env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"], PrivateKey(env["MARBLE_PREDEFINED_PRIVATE_KEY"])
    )
    for anchor in ("MARBLE_PREDEFINED_ROOT_CA", "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"):
        check_identity(identity, TrustBundle(env[anchor]), running.clock())
    who = marble_identity(identity.leaf)
    assert (who.type, who.uuid) == ("web", UUID)
    assert who.claims is not None
    assert who.claims["simulated"] is True
    assert who.claims["measurement"] == APP.unique_id.hex()
    assert who.claims["manifest"] == running.coordinator.manifest().fingerprint
    key = load_pem_private_key(env["MARBLE_PREDEFINED_PRIVATE_KEY"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    san = identity.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost"]
    assert ip_address("127.0.0.1") in san.get_values_for_type(x509.IPAddress)
    assert grant.argv == ("./web",)


async def test_parameters_come_from_the_manifest_and_cannot_replace_the_identity(bench: Bench) -> None:
    parameters = {"Files": {"/etc/a": "text"}, "Env": {"A": "b", "MARBLE_PREDEFINED_PRIVATE_KEY": "mine"}}
    await bench.coordinator.set_manifest(manifest(Marbles=marble(Parameters=parameters)))
    grant = await bench.activate()
    assert grant.files == {"/etc/a": b"text"}
    assert grant.env["A"] == b"b"
    assert b"PRIVATE KEY" in grant.env["MARBLE_PREDEFINED_PRIVATE_KEY"]
    assert "MARBLE_TTLS_CONFIG" not in grant.env


async def test_tls_tags_become_a_ttls_configuration(bench: Bench) -> None:
    tls = {"t": {"Incoming": [{"Port": "2000"}], "Outgoing": [{"Addr": "db.ns", "Port": "5432"}]}}
    await bench.coordinator.set_manifest(manifest(TLS=tls, Marbles=marble(TLS=["t"])))
    grant = await bench.activate()
    text = grant.env["MARBLE_TTLS_CONFIG"].decode()
    assert text.startswith('{"tls":{"Incoming":{"*:2000":{"cacrt":"-----BEGIN CERTIFICATE-----')
    config = json.loads(text)["tls"]
    assert config["Incoming"]["*:2000"]["clientAuth"] is True
    assert set(config["Outgoing"]["db.ns:5432"]) == {"cacrt", "clicrt", "clikey"}
    assert config["Outgoing"]["db.ns:5432"]["clicrt"].count("BEGIN") == 1


async def test_the_mesh_identity_is_another_short_lived_one(running: Bench) -> None:
    await running.activate(uuid=UUID)
    active = running.mesh._marbles["web", UUID]
    assert active.identity.not_after - running.clock() <= timedelta(hours=24)
    assert active.dns_names == ("localhost",)


WRONG = [
    (
        replace(APP, signer_id=bytes(32)),
        f"expected: {{signer id: {APP.signer_id.hex()}}}\ngot: {{signer id: {'00' * 32}}}",
    ),
    (replace(APP, product_id=8), "expected: {product id: 7}\ngot: {product id: 8}"),
    (replace(APP, security_version=2), "expected: {security version: at least 3}\ngot: {security version: 2}"),
    (replace(APP, debug=True), "expected: {debug: false}\ngot: {debug: true"),
]


@pytest.mark.parametrize(("enclave", "text"), WRONG)
async def test_other_code_is_refused_and_the_check_named(running: Bench, enclave: SimulatedEnclave, text: str) -> None:
    refused = await refusal(running, enclave=enclave)
    assert str(refused).startswith("marble verification failed: invalid quote: ")
    assert text in str(refused)
    assert refused.grpc_status.name == "PERMISSION_DENIED"
    assert refused.reason == "policy_violation"


async def test_another_measurement_is_refused(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Packages={"app": {"UniqueID": APP.unique_id.hex()}}))
    refused = await refusal(bench, enclave=replace(APP, unique_id=bytes(32)))
    assert "expected: {unique id: " in str(refused)


async def test_a_tdx_quote_for_an_sgx_package_is_refused(running: Bench) -> None:
    who = MarbleCredentials.make()
    quote = who.quote(running.platform.issuer(SimulatedTd.default("app")))
    refused = await refusal(running, credentials=who, quote=quote)
    assert str(refused).endswith("expected: {tee: sgx}\ngot: {tee: tdx}")


async def test_a_tdx_package_takes_its_guest_and_no_enclave(bench: Bench) -> None:
    guest = SimulatedTd.default("app")
    await bench.coordinator.set_manifest(manifest(Packages={"app": {"TDX": {"MRTD": guest.mrtd.hex()}}}))
    assert str(await refusal(bench)).endswith("expected: {tee: tdx}\ngot: {tee: sgx}")
    who = MarbleCredentials.make()
    await bench.activate(credentials=who, quote=who.quote(bench.platform.issuer(guest)))
    other = replace(guest, mrtd=bytes(48))
    with pytest.raises(ActivationRefused, match=r"expected: \{MRTD: "):
        await bench.activate(credentials=who, quote=who.quote(bench.platform.issuer(other)))


async def test_a_quote_of_another_platform_is_refused(running: Bench, tmp_path: Path) -> None:
    foreign = SimulatedPlatform.open(tmp_path, running.clock())
    who = MarbleCredentials.make()
    refused = await refusal(running, credentials=who, quote=who.quote(foreign.issuer(APP)))
    assert refused.reason == "untrusted"


async def test_a_quote_for_another_certificate_is_refused(running: Bench) -> None:
    stolen = MarbleCredentials.make().quote(running.platform.issuer(APP))
    refused = await refusal(running, quote=stolen)
    assert refused.reason == "binding_mismatch"
    assert "bound to another certificate" in str(refused)


async def test_a_changed_quote_is_refused(running: Bench) -> None:
    who = MarbleCredentials.make()
    quote = bytearray(who.quote(running.platform.issuer(APP)))
    quote[16 + 48 + 64] ^= 1  # one bit of MRENCLAVE
    refused = await refusal(running, credentials=who, quote=bytes(quote))
    assert refused.reason == "untrusted"


@pytest.mark.parametrize(
    ("quote", "reason"), [(b"", "no_quote"), (b"x" * 100, "unsupported"), (bytes(20_000), "malformed")]
)
async def test_no_quote_and_no_quotes_are_refused(running: Bench, quote: bytes, reason: str) -> None:
    refused = await refusal(running, quote=quote)
    assert refused.grpc_status.name == "PERMISSION_DENIED"
    assert refused.reason in (reason, "malformed")


async def test_stale_collateral_is_refused(directory: Path) -> None:
    bench = Bench.make(directory)
    published = bench.clock()
    bench.platform.collateral.clock = lambda: published  # the platform's documents stay as they are
    bench.clock.forward(timedelta(days=100))
    await bench.coordinator.set_manifest(manifest())
    refused = await refusal(bench)
    assert refused.reason == "expired"
    bench.own_quote.stop()


async def test_unknown_types_are_refused_and_do_not_fill_the_metrics(running: Bench) -> None:
    refused = await refusal(running, marble_type="x" * 100_000)
    assert str(refused) == "marble verification failed: unknown marble type requested"
    labels = {"type": "unknown", "uuid": "other"}
    assert running.metric("coordinator_marble_activations_total", labels) == 1


async def test_without_a_tls_certificate_there_is_nothing_to_bind_to(running: Bench) -> None:
    refused = await refusal(running, certificate_der=None)
    assert (str(refused), refused.grpc_status.name) == ("couldn't get marble TLS certificate", "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "uuid", ["", "x", UUID + "\n", "0" * 31, "{" + UUID, UUID[:-1], "{" + UUID.replace("-", "") + "}"]
)
async def test_bad_uuids_are_refused(running: Bench, uuid: str) -> None:
    refused = await refusal(running, uuid=uuid)
    assert str(refused).startswith("invalid UUID: ")
    assert refused.grpc_status.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("uuid", [UUID, UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}", "urn:uuid:" + UUID])
async def test_the_usual_forms_of_a_uuid_are_one_instance(running: Bench, uuid: str) -> None:
    await running.activate(uuid=uuid)
    assert list(running.mesh._marbles) == [("web", UUID)]


async def test_the_nil_uuid_is_nobody(running: Bench) -> None:
    assert "nil UUID" in str(await refusal(running, uuid="00000000-0000-0000-0000-000000000000"))


async def test_a_request_whose_signature_is_wrong_gets_nothing(running: Bench) -> None:
    csr = bytearray(MarbleCredentials.make().csr)
    csr[-1] ^= 1
    refused = await refusal(running, csr=bytes(csr))
    assert str(refused) == "generating marble authentication secrets: signature over CSR is invalid"
    assert refused.grpc_status.name == "INTERNAL"


async def test_a_marble_cannot_become_the_coordinator(running: Bench) -> None:
    who = MarbleCredentials.make(["coordinator.marblemesh.internal"])
    assert "reserved" in str(await refusal(running, credentials=who))


async def test_the_budget_counts_activations_and_cannot_be_overdrawn_at_once(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Marbles=marble(MaxActivations=2)))
    done = await asyncio.gather(*(bench.activate() for _ in range(5)), return_exceptions=True)
    refused = [e for e in done if isinstance(e, ActivationRefused)]
    assert len(refused) == 3
    text = 'marble verification failed: reached max activations count (2) for marble type "web"'
    assert {str(e) for e in refused} == {text}


class Stuck:
    """Collateral that never comes."""

    async def verify(self, quote: bytes) -> Claims:
        await asyncio.Event().wait()
        raise AssertionError

    async def appraise(self, quote: bytes, report_data: bytes, policy: Policy) -> Claims:
        await asyncio.Event().wait()
        raise AssertionError


async def test_activations_end_in_time_and_are_bounded(directory: Path) -> None:
    bench = Bench.make(directory, appraiser=Stuck(), limits=Limits(activations=1, seconds=0.05))
    await bench.coordinator.set_manifest(manifest())
    first, second = await asyncio.gather(bench.activate(), bench.activate(), return_exceptions=True)
    assert isinstance(first, ActivationRefused)
    assert isinstance(second, ActivationRefused)
    assert (first.reason, first.grpc_status.name) == ("timeout", "DEADLINE_EXCEEDED")
    assert (second.reason, second.grpc_status.name) == ("overloaded", "RESOURCE_EXHAUSTED")
    bench.own_quote.stop()


async def test_success_is_counted_and_listed(running: Bench) -> None:
    await running.activate(uuid=UUID)
    await running.activate(uuid=UUID)
    assert running.metric("coordinator_marble_activations_success_total", {"type": "web", "uuid": UUID}) == 2
    assert running.metric("coordinator_state") == 3
    events = running.events.to_json()
    assert events is not None
    assert [e["activation"]["marbleType"] for e in events] == ["web", "web"]  # type: ignore[index]


def test_nothing_secret_is_in_a_repr(running: Bench) -> None:
    grant = asyncio.run(running.activate())
    assert "PRIVATE" not in repr(grant)
    assert "PRIVATE" not in repr(running.coordinator.ca)
