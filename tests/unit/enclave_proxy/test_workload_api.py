# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API on a real socket, asked by gRPC with the published messages of py-spiffe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from spiffe._proto import workload_pb2 as published

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_server import LocalServer
from enclave_proxy.workload_answers import Answers
from enclave_proxy.workload_api import NO_JWT, SERVICE
from sds.keys import PrivateKey
from sds.material import TrustBundle
from tests.kit.local_socket import serving_on, workload
from tests.kit.pki import HOUR, marble, now, other_ca, shared_ca
from tests.unit.enclave_proxy.test_local_secrets import nameless

CA = shared_ca()
HEADER = (("workload.spiffe.io", "true"),)
Metadata = Sequence[tuple[str, str]]
Place = tuple[Path, IdentityStore, LocalServer]


def new_store() -> IdentityStore:
    return IdentityStore(Credentials(marble(CA), CA.bundle, TrustBundle(CA.chain_pem)))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    store = new_store()
    async with serving_on(tmp_path / "w", workload(store)) as server:
        yield tmp_path / "w", store, server


@asynccontextmanager
async def asked(
    path: Path, method: str, request: bytes = b"", metadata: Metadata = HEADER
) -> AsyncIterator[grpc.aio.UnaryStreamCall[bytes, bytes]]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        call = channel.unary_stream(f"{SERVICE}/{method}")(request, metadata=metadata)
        yield call
        call.cancel()


async def read(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes:
    body = await asyncio.wait_for(call.read(), 10)
    assert isinstance(body, bytes)
    return body


async def verdict(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(10):
        return await call.code(), await call.details()


async def test_an_svid_comes_with_its_chain_key_and_bundle_in_der(place: Place) -> None:
    path, store, _ = place
    async with asked(path, "FetchX509SVID") as call:
        response = published.X509SVIDResponse.FromString(await read(call))
    (svid,) = response.svids
    identity = store.credentials.identity
    assert svid.spiffe_id == str(identity.spiffe_id)
    assert x509.load_der_x509_certificate(svid.x509_svid[: len(_der(identity.leaf))]) == identity.leaf
    assert svid.x509_svid == b"".join(map(_der, identity.certificates))
    assert svid.bundle == b"".join(map(_der, CA.bundle.certificates))
    key = load_der_private_key(svid.x509_svid_key, None)
    assert key.public_key() == identity.leaf.public_key()
    assert (svid.hint, list(response.crl), dict(response.federated_bundles)) == ("", [], {})


async def test_a_bundle_comes_by_the_id_of_its_trust_domain(place: Place) -> None:
    async with asked(place[0], "FetchX509Bundles") as call:
        response = published.X509BundlesResponse.FromString(await read(call))
    assert dict(response.bundles) == {f"spiffe://{CA.trust_domain}": b"".join(map(_der, CA.bundle.certificates))}


async def test_changes_follow_and_only_what_has_changed(place: Place) -> None:
    path, store, server = place
    async with asked(path, "FetchX509SVID") as svids, asked(path, "FetchX509Bundles") as bundles:
        await read(svids)
        await read(bundles)
        renewed = marble(CA)
        await store.adopt(replace(store.credentials, identity=renewed))
        (svid,) = published.X509SVIDResponse.FromString(await read(svids)).svids
        assert svid.x509_svid.startswith(_der(renewed.leaf))
        both = TrustBundle(CA.bundle.pem + other_ca().bundle.pem)
        await store.adopt(replace(store.credentials, bundle=both))
        (bundle,) = published.X509BundlesResponse.FromString(await read(bundles)).bundles.values()
        assert bundle == b"".join(map(_der, both.certificates))
        assert published.X509SVIDResponse.FromString(await read(svids)).svids[0].bundle == bundle
        assert server.counters.sent == {"FetchX509SVID": 3, "FetchX509Bundles": 2}


async def test_a_slow_client_gets_the_newest_state_and_not_every_one_in_between(place: Place) -> None:
    path, store, _ = place
    async with asked(path, "FetchX509SVID") as call:
        await read(call)
        renewals = [marble(CA) for _ in range(20)]
        for renewed in renewals:
            await store.adopt(replace(store.credentials, identity=renewed))
        count = 0
        while True:
            count += 1
            (svid,) = published.X509SVIDResponse.FromString(await read(call)).svids
            if svid.x509_svid.startswith(_der(renewals[-1].leaf)):
                break
        assert count <= 20


@pytest.mark.parametrize(
    "method", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"]
)
@pytest.mark.parametrize(
    "metadata",
    [(), (("workload.spiffe.io", "True"),), (("workload.spiffe.io", "true"), ("workload.spiffe.io", "true"))],
    ids=["none", "another value", "twice"],
)
async def test_a_call_without_the_security_header_is_refused(place: Place, method: str, metadata: Metadata) -> None:
    async with asked(place[0], method, metadata=metadata) as call:
        code, text = await verdict(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "workload.spiffe.io: true" in text


@pytest.mark.parametrize("method", ["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"])
async def test_jwt_svids_are_switched_off_and_the_answer_says_so(place: Place, method: str) -> None:
    request = published.JWTSVIDRequest(audience=["a"]).SerializeToString()
    async with asked(place[0], method, request) as call:
        assert await verdict(call) == (grpc.StatusCode.UNIMPLEMENTED, NO_JWT)


async def test_who_is_turned_out_of_the_mesh_loses_its_identity_in_open_calls_and_new_ones(place: Place) -> None:
    path, store, _ = place
    async with asked(path, "FetchX509SVID") as call:
        await read(call)
        await store.withdraw()
        code, text = await verdict(call)
        assert (code, "no longer part of the mesh" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
    async with asked(path, "FetchX509Bundles") as again:
        assert (await verdict(again))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_an_expired_identity_is_none(tmp_path: Path) -> None:
    async with (
        serving_on(tmp_path / "w", workload(new_store(), lambda: now() + 2 * HOUR)),
        asked(tmp_path / "w", "FetchX509SVID") as call,
    ):
        code, text = await verdict(call)
    assert (code, "has expired" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_a_certificate_without_a_spiffe_id_is_no_svid(place: Place) -> None:
    path, store, _ = place
    await store.adopt(replace(store.credentials, identity=nameless(PrivateKey.generate_p256())))
    async with asked(path, "FetchX509SVID") as call:
        code, text = await verdict(call)
    assert (code, "no SPIFFE ID" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_answers_are_made_once_for_all_clients(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store, _ = place
    made: list[Credentials] = []
    real = Answers.of

    def counted(credentials: Credentials) -> Answers | None:
        made.append(credentials)
        return real(credentials)

    monkeypatch.setattr(Answers, "of", counted)
    async with (
        asked(path, "FetchX509SVID") as one,
        asked(path, "FetchX509SVID") as two,
        asked(path, "FetchX509Bundles") as b,
    ):
        for call in (one, two, b):
            await read(call)
        await store.adopt(replace(store.credentials, identity=marble(CA, lifetime=timedelta(minutes=5))))
        await read(one)
        await read(two)
    assert len(made) == 2


def test_answers_are_not_printed() -> None:
    answers = Answers.of(new_store().credentials)
    assert answers is not None
    assert repr(answers) == "Answers()"


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
