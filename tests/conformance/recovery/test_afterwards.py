# SPDX-License-Identifier: Apache-2.0
"""After a recovery: the old root speaks again, the state is sealed anew, and everybody goes on where they were."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.conformance.recovery.conftest import Deploy
from tests.kit.coordinator import manifest
from tests.kit.deployment import b64
from tests.kit.openssl_judge import s_client
from tests.kit.outside import Outside
from tests.kit.recovering import Deployment, owned, owners
from tests.kit.sealed import parts
from tests.kit.site import Site
from tests.kit.users import user


async def shown(outside: Outside) -> list[bytes]:
    """What both ports present, by `openssl s_client`."""
    pem = outside.directory / "anybody.pem"
    pem.write_bytes(user("anybody").certificate + user("anybody").key)
    client, mesh = (
        await s_client(outside.client_port),
        await s_client(outside.mesh_port, "-alpn", "h2", "-cert", str(pem)),
    )
    return [*client.presented, *mesh.presented]


# --- certificates and quote


async def test_until_recovery_the_ports_present_a_ca_made_for_the_occasion_and_then_the_old_one(deploy: Deploy) -> None:
    made = await deploy("a")
    before = await shown(made.outside)
    outside = await made.lose_key()
    meanwhile = await shown(outside)
    await made.upload_all("a")
    after = await shown(outside)
    assert (len(before), set(before) & set(meanwhile), before == after) == (2, set(), True)


async def test_the_quote_is_issued_again_for_the_recovered_root(lost: Deploy) -> None:
    made = await lost("a")
    await made.upload_all("a")
    root = x509.load_pem_x509_certificate(await made.outside.root()).public_bytes(Encoding.DER)
    for nonce in (b"", b"nonce"):
        query = f"?nonce={base64.urlsafe_b64encode(nonce).decode()}" if nonce else ""
        quote = base64.b64decode((await made.outside.get(f"/api/v2/quote{query}")).data["quote"])
        # OpenEnclave's header of 16 bytes, the quote's of 48; the report data are the last 64 of the report's 384.
        assert quote[16:][48 + 320 : 48 + 384] == hashlib.sha256(root + nonce).digest() + bytes(32)


# --- the state


async def test_the_state_is_sealed_to_this_machine_at_once_and_both_files_are_new(lost: Deploy) -> None:
    made = await lost("ab")
    before = made.site.file()
    await made.upload_all("ab")
    assert made.site.file() != before
    outside = await made.site.restart()
    assert await outside.status() == 3


async def test_the_recovery_data_stay_so_that_the_same_owners_can_come_again(lost: Deploy) -> None:
    made = await lost("abc", 2)
    clear, _ = parts(made.site.file())
    assert await made.upload_all("ab") == [2, 0]
    assert parts(made.site.file())[0] == clear
    await made.lose_key()
    assert await made.upload_all("bc") == [2, 0]


async def test_sealed_data_alone_is_a_backup_for_any_machine(deploy: Deploy, tmp_path: Path) -> None:
    made = await deploy("ab")
    own, root = (await made.outside.activate())["OWN"], await made.outside.root()
    elsewhere = Site(tmp_path / "elsewhere")
    elsewhere.state.mkdir(parents=True)
    (elsewhere.state / "sealed_data").write_bytes(made.site.file())
    await made.site.stop()
    try:
        outside = await elsewhere.start("another machine")
        restored = Deployment(elsewhere, made.owners, made.secrets)
        assert await restored.upload_all("ba") == [1, 0]
        assert (await outside.root(), (await outside.activate())["OWN"]) == (root, own)
    finally:
        await elsewhere.stop()


async def test_users_go_on_with_what_they_had_begun(deploy: Deploy) -> None:
    people: dict[str, object] = {
        "Users": {who: {"Certificate": user(who).certificate.decode(), "Roles": ["update"]} for who in ("alice", "bob")}
    }
    made = await deploy("a", **people)
    new = owned(made.owners, 0, **people, TLS={})
    assert (await made.outside.update(new)).data["missingUsers"] == ["bob"]
    outside = await made.lose_key()
    assert (await outside.pending()).status == 404
    await made.upload_all("a")
    assert (await outside.pending()).data["manifest"] == b64(new)
    assert (await outside.acknowledge(new, "bob")).data["missingAcknowledgments"] == 0


# --- recovery keys and updates


async def test_an_update_of_the_recovery_keys_hands_out_new_secrets_which_recover(deploy: Deploy) -> None:
    made = await deploy("a")
    own = (await made.outside.activate())["OWN"]
    keys = owners(made.site.home, "bcd")
    secrets = await made.update(owned(keys, 2), keys)
    assert secrets is not None
    assert list(secrets) == ["b", "c", "d"]
    await made.lose_key()
    now = Deployment(made.site, keys, dict(secrets))
    assert await now.upload_all("db") == [2, 0]
    assert (await now.outside.activate())["OWN"] == own


async def test_a_change_of_the_threshold_alone_makes_a_new_data_key_too(deploy: Deploy) -> None:
    made = await deploy("abc", 2)
    secrets = await made.update(owned(made.owners, 3), made.owners)
    assert secrets is not None
    assert {len(secret) for secret in secrets.values()} == {32}
    await made.lose_key()
    assert await Deployment(made.site, made.owners, dict(secrets)).upload_all("cba") == [2, 1, 0]


async def test_an_update_that_leaves_keys_and_threshold_alone_leaves_the_secrets_good(deploy: Deploy) -> None:
    made = await deploy("ab")
    assert await made.update(owned(made.owners, TLS={}), made.owners) is None
    await made.lose_key()
    assert await made.upload_all("ab") == [1, 0]


async def test_an_update_that_removes_the_keys_hands_out_none_and_ends_recovery(deploy: Deploy) -> None:
    made = await deploy("a")
    assert await made.update(owned({}), {}) == {}
    await made.lose_key()
    assert (await made.upload("a")).status == 500
    assert await made.outside.status() == 1


async def test_a_raised_root_secret_is_recovered_with_the_one_before(deploy: Deploy) -> None:
    env = {"OWN": "{{ hex .Secrets.own }}", "BEFORE": "{{ hex .Previous.Secrets.own }}"}
    marbles: dict[str, object] = {"Marbles": {"web": {"Package": "app", "Parameters": {"Env": env}}}}
    made = await deploy("a", **marbles)
    own = (await made.outside.activate())["OWN"]
    await made.update(owned(made.owners, 0, Config={"RotateRootSecret": True}, **marbles), made.owners)
    rotated = await made.outside.activate()
    assert (rotated["OWN"] == own, rotated["BEFORE"] == own) == (False, True)
    await made.lose_key()
    await made.upload_all("a")
    again = await made.outside.activate()
    assert (again["OWN"], again["BEFORE"]) == (rotated["OWN"], own)


# --- meanwhile


async def test_no_marble_is_activated_before_recovery(lost: Deploy) -> None:
    made = await lost("a")
    assert await made.outside.refusal() == "FAILED_PRECONDITION: cannot accept marbles in current state"


async def test_nobody_is_a_user_before_recovery(lost: Deploy) -> None:
    made = await lost("a")
    assert (await made.outside.update(b"{}")).status == 401
    assert (await made.outside.get("/api/v2/manifest")).message == "requested value not set"


async def test_instead_anybody_may_set_a_new_manifest_which_does_not_destroy_what_the_owners_can_open(
    lost: Deploy, tmp_path: Path
) -> None:
    """Where MarbleRun overwrites it."""
    made = await lost("a")
    assert (await made.outside.set_manifest(manifest())).status == 200
    assert await made.outside.status() == 3
    late = await made.upload("a")
    assert (late.status, late.message) == (500, "server is not in expected state")
    beside = Site(tmp_path / "beside")
    beside.state.mkdir(parents=True)
    (made.site.state / "sealed_data.kept-1").rename(beside.state / "sealed_data")
    try:
        await beside.start()
        assert await Deployment(beside, made.owners, made.secrets).upload_all("a") == [0]
    finally:
        await beside.stop()
