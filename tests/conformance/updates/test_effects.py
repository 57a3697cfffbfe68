# SPDX-License-Identifier: Apache-2.0
"""What a full update puts in force besides secrets: manifest, CA, who may run, who may do what; and what counts on."""

from __future__ import annotations

import base64
import json

import pytest

from tests.conformance.updates.conftest import Serve
from tests.kit.coordinator import PACKAGE
from tests.kit.deployment import b64
from tests.kit.openssl_judge import certificates, openssl, public_key, signed, verifies
from tests.kit.outside import CHAIN, MARBLE_ROOT, ROOT
from tests.kit.parties import document, pem, raw
from tests.kit.sealed import unseal
from tests.kit.site import INSECURE

SECURE_APP = {"Package": "app"}


async def test_the_new_manifest_is_shown_with_its_fingerprint_and_the_root_s_signature(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    new = raw("alice", TLS={})
    await outside.update(new)
    shown = (await outside.get("/api/v2/manifest")).data
    digest = openssl("dgst", "-sha256", "-r", data=new).decode().partition(" ")[0]
    assert (shown["manifest"], shown["manifestFingerprint"]) == (b64(new), digest)
    root = openssl("x509", "-pubkey", "-noout", data=await outside.root())
    assert signed(root, base64.b64decode(shown["manifestSignatureRootECDSA"]), new)


async def test_there_is_a_new_intermediate_and_marble_root_under_the_same_root(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    root, old, old_marble_root = await outside.ca()
    await outside.update(raw("alice", TLS={}))
    same, new, marble_root = await outside.ca()
    assert (root == same, old == new, old_marble_root == marble_root) == (True, False, False)
    assert public_key(new) == public_key(marble_root) != public_key(old)
    names = ("x509", "-noout", "-ext", "subjectAltName")
    assert openssl(*names, data=new) == openssl(*names, data=old), "with addresses too"


async def test_a_marble_that_is_activated_afterwards_is_trusted_by_holders_of_the_old_root(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    before = await outside.activate()
    await outside.update(raw("alice", TLS={}))
    after = await outside.activate()
    assert after[ROOT] == before[ROOT]
    leaf, intermediate = certificates(after[CHAIN])
    assert verifies(leaf, before[ROOT], untrusted=intermediate)
    assert verifies(leaf, after[MARBLE_ROOT])
    assert not verifies(leaf, before[MARBLE_ROOT])


# --- who may run, and with what


async def test_new_marbles_are_activated_removed_ones_refused_changed_ones_get_what_is_new(serve: Serve) -> None:
    outside = (await serve(raw("alice", Marbles={"web": SECURE_APP, "old": SECURE_APP}))).outside
    changed = SECURE_APP | {"Parameters": {"Env": {"MODE": "new"}}}
    await outside.update(raw("alice", Marbles={"web": changed, "api": SECURE_APP}))
    await outside.activate("api")
    assert (await outside.activate())["MODE"] == b"new"
    assert await outside.refusal("old") == (
        "PERMISSION_DENIED: marble verification failed: unknown marble type requested"
    )


async def test_a_changed_package_decides_who_may_run(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    await outside.activate()
    await outside.update(raw("alice", Packages={"app": PACKAGE | {"ProductID": 8}}))
    assert (await outside.refusal()).startswith("PERMISSION_DENIED: marble verification failed: invalid quote: ")


async def test_changed_tls_tags_reach_the_next_activation(serve: Serve) -> None:
    def tagged(port: str) -> bytes:
        tags = {"t": {"Incoming": [{"Port": port}]}}
        return raw("alice", TLS=tags, Marbles={"web": SECURE_APP | {"TLS": ["t"]}})

    outside = (await serve(tagged("8080"))).outside
    await outside.update(tagged("9090"))
    config = json.loads((await outside.activate())["MARBLE_TTLS_CONFIG"])
    assert list(config["tls"]["Incoming"]) == ["*:9090"]


async def test_every_kind_of_entry_is_replaced_in_the_stored_state(serve: Serve) -> None:
    def with_names(name: str) -> bytes:
        members = document("alice")
        members["Users"][name] = {"Certificate": pem(name)}
        members["Infrastructures"] = {name: {"QESVN": 2}}
        members["TLS"] = {name: {}}
        members["Packages"][name] = {"UniqueID": "ab" * 32}
        members["Marbles"][name] = {"Package": name}
        return json.dumps(members).encode()

    running = await serve(with_names("old"), **INSECURE)
    await running.outside.update(with_names("new"))
    keys = unseal(running.file(), running.file("sealed_key"))
    kinds = ("package", "marble", "TLS", "infrastructure", "user")
    assert {key for key in keys if key.endswith((":old", ":new"))} == {f"{kind}:new" for kind in kinds}


# --- who may do what


async def test_new_users_may_and_removed_ones_are_nobody(serve: Serve) -> None:
    outside = (await serve(raw("alice", "bob", Config={"UpdateThreshold": 1}))).outside
    await outside.update(raw("alice", "carol"))
    assert (await outside.cancel("bob")).status == 401
    assert (await outside.cancel("carol")).status == 404


async def test_permissions_are_those_of_the_new_roles(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    members = document("alice")
    members["Roles"]["raise"] = {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": []}
    await outside.update(json.dumps(members).encode())
    answer = await outside.update(b'{"Packages":{"app":{"SecurityVersion":4}}}', "dave")
    assert answer.message == "user dave is not allowed to update one or more packages of [app]"


# --- what counts on


@pytest.mark.parametrize("limit", [2, 1])
async def test_activations_are_counted_on(serve: Serve, limit: int) -> None:
    def limited(most: int, **members: object) -> bytes:
        return raw("alice", Marbles={"web": SECURE_APP | {"MaxActivations": most}}, **members)

    outside = (await serve(limited(2))).outside
    await outside.activate()
    await outside.update(limited(limit, TLS={}))
    if limit == 2:
        await outside.activate()
    assert await outside.refusal() == (
        f'PERMISSION_DENIED: marble verification failed: reached max activations count ({limit}) for marble type "web"'
    )
