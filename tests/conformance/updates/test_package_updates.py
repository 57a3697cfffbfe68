# SPDX-License-Identifier: Apache-2.0
"""Package updates: one user raises security versions; Marbles below them get nothing, the manifest stays as it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave
from tests.conformance.updates.conftest import Serve
from tests.kit.coordinator import APP, PACKAGE
from tests.kit.deployment import ERROR, b64
from tests.kit.manifests import TDX_PACKAGE
from tests.kit.openssl_judge import certificates, public_key, verifies, x509
from tests.kit.outside import CHAIN, ROOT, Outside
from tests.kit.parties import certificate_pem, document, raising, raw, showing
from tests.kit.site import site

STEP = "checking update manifest: "
NEWER = SimulatedEnclave(APP.unique_id, SIMULATED_SIGNER, product_id=7, security_version=4)


# --- what it does


async def test_marbles_must_have_the_raised_version(serve: Serve) -> None:
    outside = (await serve(raw())).outside
    await outside.activate()
    assert (await outside.update(raising(app=4), "dave")).status == 200
    assert (await outside.refusal()).startswith("PERMISSION_DENIED: marble verification failed: invalid quote: ")
    await outside.activate(enclave=NEWER)


async def test_the_answer_is_that_nobody_is_missing(serve: Serve) -> None:
    outside = (await serve(raw())).outside
    v2 = await outside.update(raising(app=4), "dave")
    assert v2.body == b'{"status":"success","data":{"missingAcknowledgments":0,"missingUsers":null}}\n'
    v1 = await outside.post("/update", raising(app=5), "dave")
    assert v1.body == b'{"status":"success","data":null}\n'


async def test_manifest_fingerprint_and_signature_stay(serve: Serve) -> None:
    outside = (await serve(raw())).outside
    before = (await outside.get("/api/v2/manifest")).data
    await outside.update(raising(app=4), "dave")
    assert (await outside.get("/api/v2/manifest")).data == before


async def test_the_same_version_again_is_fine_and_a_lower_one_is_not_even_above_the_manifest_s(serve: Serve) -> None:
    outside = (await serve(raw())).outside
    for version in (3, 5, 5):
        assert (await outside.update(raising(app=version), "dave")).status == 200
    answer = await outside.update(raising(app=4), "dave")
    assert answer.message == f"{STEP}update manifest tries to downgrade SecurityVersion of the original manifest"


async def test_there_is_a_new_intermediate_and_marble_root_under_the_same_root(serve: Serve) -> None:
    outside = (await serve(raw())).outside
    root, old, old_marble_root = await outside.ca()
    await outside.update(raising(app=4), "dave")
    same, new, marble_root = await outside.ca()
    assert (root == same, old == new, old_marble_root == marble_root) == (True, False, False)
    assert public_key(new) == public_key(marble_root) != public_key(old)
    assert verifies(new, root)
    leaf = certificates((await outside.activate(enclave=NEWER))[CHAIN])[0]
    judged = [verifies(leaf, anchor, "-partial_chain") for anchor in (marble_root, new, old_marble_root, old)]
    assert judged == [True, True, False, False]


async def test_shared_certificates_are_issued_anew_until_their_old_end_and_all_other_secrets_stay(serve: Serve) -> None:
    secrets: dict[str, dict[str, object]] = {
        "tls": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7},
        "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "own": {"Type": "symmetric-key", "Size": 128},
        "mine": {"Type": "plain", "UserDefined": True},
    }
    outside = (await serve(raw("alice", Secrets=secrets))).outside
    await outside.post("/api/v2/secrets", {"secrets": {"mine": {"Key": b64(b"value")}}}, "alice")
    before, env = await outside.secrets("tls", "key", "mine"), await outside.activate()
    await outside.update(raising(app=3), "dave")
    after, now = await outside.secrets("tls", "key", "mine"), await outside.activate()
    assert (after["key"], after["mine"]) == (before["key"], before["mine"])
    assert {name for name in showing(secrets) if env[name] != now[name]} == {"tls"}
    old, new = (certificate_pem(shown["tls"]["Cert"]) for shown in (before, after))
    assert x509(old, "-enddate") == x509(new, "-enddate")
    assert x509(old, "-serial") != x509(new, "-serial")
    assert verifies(new, now[ROOT], untrusted=now[CHAIN])


async def test_a_raised_version_outlives_a_restart_and_an_update_that_leaves_the_package_as_it_was(
    serve: Serve,
) -> None:
    running = await serve(raw("alice"))
    await running.outside.update(raising(app=4), "dave")
    outside = await running.restart()
    assert (await outside.refusal()).startswith("PERMISSION_DENIED: ")
    assert (await outside.update(raw("alice", TLS={}))).status == 200
    assert (await outside.refusal()).startswith("PERMISSION_DENIED: ")
    lower = raw("alice", Packages={"app": PACKAGE | {"SecurityVersion": 2}})
    assert (await outside.update(lower)).status == 200
    await outside.activate()


# --- what is one


@pytest.mark.parametrize(
    "members",
    [
        {"Config": {"SealMode": "UniqueKey", "RotateRootSecret": True}},
        dict.fromkeys(("Marbles", "Users", "RecoveryKeys", "Roles", "Secrets", "TLS", "Infrastructures", "Config")),
        {"Marbles": {}, "Users": {}, "RecoveryKeys": {}, "Roles": {}, "Secrets": {}, "TLS": {}, "Infrastructures": {}},
    ],
    ids=["Config is ignored", "null is nothing", "empty is nothing"],
)
async def test_packages_alone_are_a_package_update(serve: Serve, members: dict[str, object]) -> None:
    outside = (await serve(raw())).outside
    update = json.dumps(json.loads(raising(app=4)) | members).encode()
    assert (await outside.update(update, "dave")).status == 200
    assert [entry["update"] for entry in (await outside.log())[1:]] == ["SecurityVersion increased"]


# --- what is refused; one Coordinator for all, since nothing changes


REFUSING = {
    "Packages": {"app": PACKAGE, "other": PACKAGE, "fixed": {"UniqueID": "ab" * 32}, "vm": TDX_PACKAGE},
    "Marbles": {name: {"Package": name} for name in ("app", "other", "fixed", "vm")},
    "Roles": document()["Roles"]
    | {
        "raise": {
            "ResourceType": "Packages",
            "ResourceNames": ["app", "fixed", "vm"],
            "Actions": ["updateSECURITYversion"],
        }
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outside]:
    async with site(tmp_path_factory.mktemp("refusing"), raw("alice", **REFUSING)) as running:
        before = running.file(), await running.outside.ca()
        yield running.outside
        assert (running.file(), await running.outside.ca()) == before


FULL = {
    "Marbles": {"web": {"Package": "app"}},
    "Users": document()["Users"],
    "Roles": {"r": {}},
    "RecoveryKeys": {"k": "x"},
    "Secrets": {"s": {"Type": "plain"}},
    "TLS": {"t": {}},
    "Infrastructures": {"i": {}},
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("member", FULL)
async def test_anything_besides_packages_is_a_whole_manifest(refusing: Outside, member: str) -> None:
    update = json.dumps(json.loads(raising(app=4)) | {member: FULL[member]}).encode()
    answer = await refusing.update(update, "dave")
    assert answer.message == "user dave is not allowed to update the complete manifest"


REFUSED = {
    "no packages": (b"{}", f"{STEP}no packages defined"),
    "Config alone": (b'{"Config":{"SealMode":"UniqueKey"}}', f"{STEP}no packages defined"),
    "a package that is not there": (
        raising(app=4, x=9),
        'loading current package "x" from store: requested value not set',
    ),
    "no version": (raising(app={}), f"{STEP}update manifest does not specify a SecurityVersion to update"),
    "a lower version": (
        raising(app=2),
        f"{STEP}update manifest tries to downgrade SecurityVersion of the original manifest",
    ),
    "Debug": (raising(app={"SecurityVersion": 9, "Debug": True}), f"{STEP}update manifest contains unupdatable values"),
    "UniqueID": (
        raising(app={"SecurityVersion": 9, "UniqueID": "ab" * 32}),
        f"{STEP}update manifest contains unupdatable values",
    ),
    "SignerID": (
        raising(app={"SecurityVersion": 9, "SignerID": "ab" * 32}),
        f"{STEP}update manifest contains unupdatable values",
    ),
    "ProductID": (
        raising(app={"SecurityVersion": 9, "ProductID": 7}),
        f"{STEP}update manifest contains unupdatable values",
    ),
    "a package by UniqueID": (
        raising(fixed=9),
        f"{STEP}package fixed is not identified by a SecurityVersion: it cannot be raised",
    ),
    "a package of another TEE": (
        raising(vm=9),
        f"{STEP}package vm is not identified by a SecurityVersion: it cannot be raised",
    ),
    "a package of others": (raising(other=9), "user dave is not allowed to update one or more packages of [other]"),
    "a package of others too": (
        raising(app=9, other=9),
        "user dave is not allowed to update one or more packages of [app other]",
    ),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_allowed_is_refused_with_its_reason(refusing: Outside, name: str) -> None:
    update, text = REFUSED[name]
    answer = await refusing.update(update, "dave")
    assert (answer.status, answer.kind, answer.message) == (500, ERROR, text)


@pytest.mark.asyncio(loop_scope="module")
async def test_in_version_1_a_refusal_is_a_400(refusing: Outside) -> None:
    answer = await refusing.post("/update", b"{}", "dave")
    assert (answer.status, answer.kind, answer.message) == (400, ERROR, f"{STEP}no packages defined")


@pytest.mark.asyncio(loop_scope="module")
async def test_who_may_update_the_manifest_may_not_therefore_raise_a_package(refusing: Outside) -> None:
    answer = await refusing.update(raising(app=4), "alice")
    assert answer.message == "user alice is not allowed to update one or more packages of [app]"


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_manifest_at_all_is_refused(refusing: Outside) -> None:
    answer = await refusing.update(b"{", "dave")
    assert (answer.status, answer.kind) == (500, ERROR)
    assert answer.message.startswith("unmarshaling manifest: ")
