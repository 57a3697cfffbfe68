# SPDX-License-Identifier: Apache-2.0
"""Updates of the manifest: packages, whole manifests, several users, and what becomes of secrets and Marbles."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography import x509

from sds.ca import CertificateAuthority, pem_of
from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle, check_identity
from tests.kit.coordinator import PACKAGE, Bench
from tests.kit.users import public_pem, recovery_key, user
from xds_server.errors import (
    ActivationRefused,
    CoordinatorError,
    NotAllowed,
    NoUpdate,
    Unauthorized,
    UpdateRefused,
    VerificationFailed,
)

ALICE, BOB, CAROL, DAVE = ([user(name).der] for name in ("alice", "bob", "carol", "dave"))
UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"
IN_PROGRESS = "^update already in progress. Acknowledge the update to apply it, or cancel it to start a new one$"


def document(*updaters: str, **members: object) -> dict[str, Any]:
    """`updaters` may update the manifest; dave may raise the package `app`."""
    people = {name: {"Certificate": user(name).certificate.decode(), "Roles": ["update"]} for name in updaters}
    people["dave"] = {"Certificate": user("dave").certificate.decode(), "Roles": ["raise"]}
    return {
        "Packages": {"app": PACKAGE},
        "Marbles": {"web": {"Package": "app", "Parameters": {"Argv": ["./web"]}}},
        "Users": people,
        "Roles": {
            "update": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
            "raise": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
        },
    } | members


def raw(*updaters: str, **members: object) -> bytes:
    return json.dumps(document(*updaters, **members)).encode()


def raised(version: int | None, **members: object) -> bytes:
    package: dict[str, object] = {} if version is None else {"SecurityVersion": version}
    return json.dumps({"Packages": {"app": package | members}}).encode()


def log(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in bench.coordinator.update_log()]


# --- package updates (3.9)


async def test_a_package_update_raises_what_marbles_must_have_and_leaves_the_manifest(bench: Bench) -> None:
    first = raw()
    await bench.coordinator.set_manifest(first)
    before = bench.coordinator.ca
    answer = await bench.coordinator.update_apply(raised(4), DAVE)
    assert (answer.missing_acknowledgments, answer.missing_users, answer.recovery_secrets) == (0, None, None)
    assert bench.coordinator.manifest().raw == first
    entry = log(bench)[-1]
    assert list(entry) == ["time", "update", "user", "package", "new version"]
    assert list(entry.values())[1:] == ["SecurityVersion increased", "dave", "app", 4]
    rotated(before, bench.coordinator.ca)
    with pytest.raises(VerificationFailed, match="security version: want at least 4, got 3"):
        await bench.activate()
    await bench.coordinator.update_apply(raised(4), DAVE)  # the same again is fine
    with pytest.raises(UpdateRefused, match=r"tries to downgrade SecurityVersion of the original manifest$"):
        await bench.coordinator.update_apply(raised(3), DAVE)


def rotated(before: CertificateAuthority, after: CertificateAuthority) -> None:
    assert after.root == before.root
    assert after.intermediate != before.intermediate
    assert after.marble_root != before.marble_root
    assert after.intermediate_key != before.intermediate_key


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"Packages": {}}, "^checking update manifest: no packages defined$"),
        ({"Packages": {"x": {"SecurityVersion": 9}}}, '^loading current package "x" from store: requested value not'),
        (raised(None), "^checking update manifest: update manifest does not specify a SecurityVersion to update$"),
        (raised(9, Debug=True), "^checking update manifest: update manifest contains unupdatable values$"),
        (raised(9, ProductID=1), "^checking update manifest: update manifest contains unupdatable values$"),
        (b"{", "^unmarshaling manifest: "),
    ],
)
async def test_a_package_update_changes_security_versions_only(bench: Bench, update: Any, text: str) -> None:
    await bench.coordinator.set_manifest(raw())
    with pytest.raises(UpdateRefused, match=text):
        await bench.coordinator.update_apply(update if isinstance(update, bytes) else json.dumps(update).encode(), DAVE)
    assert len(log(bench)) == 1


async def test_only_who_may_raises_a_package(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    with pytest.raises(NotAllowed, match=r"^user alice is not allowed to update one or more packages of \[app\]$"):
        await bench.coordinator.update_apply(raised(4), ALICE)
    with pytest.raises(Unauthorized):
        await bench.coordinator.update_apply(raised(4), [user("mallory").der])


async def test_a_package_update_reissues_shared_certificates_until_their_old_end(bench: Bench) -> None:
    secrets = {"tls": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7}}
    await bench.coordinator.set_manifest(raw(Secrets=secrets))
    before = bench.store.committed[-1].secrets["tls"].certificate or b""
    await bench.coordinator.update_apply(raised(4), DAVE)
    after = bench.store.committed[-1].secrets["tls"].certificate or b""
    old, new = x509.load_der_x509_certificate(before), x509.load_der_x509_certificate(after)
    assert old != new
    assert old.not_valid_after_utc == new.not_valid_after_utc
    new.verify_directly_issued_by(bench.coordinator.ca.marble_root)


# --- full updates (3.9, 3.11)


async def test_one_who_may_update_alone_does_so_at_once(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    before = bench.coordinator.ca
    new = raw("alice", Marbles={"api": {"Package": "app"}})
    answer = await bench.coordinator.update_apply(new, ALICE)
    assert (answer.missing_acknowledgments, answer.missing_users, answer.recovery_secrets) == (0, None, None)
    signed = bench.coordinator.manifest()
    assert signed.raw == new
    rotated(before, bench.coordinator.ca)
    assert [(e["update"], e["manifestFingerprint"]) for e in log(bench)[1:]] == [
        ("Complete Manifest update initiated by user. No further acknowledgements required", signed.fingerprint),
        ("Complete Manifest updated", signed.fingerprint),
    ]
    await bench.activate(marble_type="api")
    with pytest.raises(VerificationFailed, match="unknown marble type requested"):
        await bench.activate()


async def test_who_may_not_update_does_not(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    with pytest.raises(NotAllowed, match=r"^user dave is not allowed to update the complete manifest$"):
        await bench.coordinator.update_apply(raw("alice", "dave"), DAVE)
    with pytest.raises(UpdateRefused, match=r"^invalid manifest: .*manifest does not contain marble package x"):
        await bench.coordinator.update_apply(raw("alice", Marbles={"web": {"Package": "x"}}), ALICE)


async def test_several_users_agree_on_the_very_same_bytes(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice", "bob", "carol"))
    with pytest.raises(NoUpdate, match=r"^no update in progress$"):
        bench.coordinator.update_get()
    new = raw("alice", "bob")
    answer = await bench.coordinator.update_apply(new, ALICE)
    assert (answer.missing_acknowledgments, answer.missing_users) == (2, ("bob", "carol"))
    pending = bench.coordinator.update_get()
    assert pending.manifest == new
    assert pending.message == "2 users still need to acknowledge the update manifest"
    for update, who in ((raw("alice"), ALICE), (raised(9), DAVE)):
        with pytest.raises(UpdateRefused, match=IN_PROGRESS):
            await bench.coordinator.update_apply(update, who)
    with pytest.raises(UpdateRefused, match=r"^provided manifest does not match the pending manifest$"):
        await bench.coordinator.update_acknowledge(new + b" ", BOB)
    with pytest.raises(NotAllowed, match=r"^user dave is not allowed to acknowledge manifest updates$"):
        await bench.coordinator.update_acknowledge(new, DAVE)
    for _ in range(2):  # the second time changes nothing
        half = await bench.coordinator.update_acknowledge(new, BOB)
        assert half.update.missing_acknowledgments == 1
        assert half.message == (
            "1 user still needs to acknowledge the update manifest.\nThe following users have not yet accepted: carol"
        )
    assert bench.coordinator.update_get().message == "1 user still needs to acknowledge the update manifest"
    done = await bench.coordinator.update_acknowledge(new, CAROL)
    assert done.message == "All users have acknowledged the update manifest. Update successfully applied"
    assert (done.update.missing_acknowledgments, done.update.missing_users) == (0, None)
    assert bench.coordinator.manifest().raw == new
    texts = [entry["update"] for entry in log(bench)]
    assert texts[1:] == [
        "Complete Manifest update initiated by user. Waiting for acknowledgments to apply the update",
        "Complete Manifest update acknowledged by user",
        "Complete Manifest update acknowledged by user",
        "Complete Manifest updated",
    ]
    assert list(log(bench)[1]) == [
        "time", "update", "user", "missingAcknowledgments", "missingUsers", "manifestFingerprint",
    ]  # fmt: skip


async def test_a_threshold_is_enough(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice", "bob", "carol", Config={"UpdateThreshold": 2}))
    new = raw("alice")
    answer = await bench.coordinator.update_apply(new, ALICE)
    assert (answer.missing_acknowledgments, answer.missing_users) == (1, ("bob", "carol"))
    await bench.coordinator.update_acknowledge(new, CAROL)
    assert bench.coordinator.manifest().raw == new


async def test_any_one_of_them_calls_it_off(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice", "bob"))
    with pytest.raises(NoUpdate):
        await bench.coordinator.update_cancel(ALICE)
    await bench.coordinator.update_apply(raw("alice"), ALICE)
    with pytest.raises(NotAllowed, match=r"^user dave is not allowed to cancel the manifest update$"):
        await bench.coordinator.update_cancel(DAVE)
    assert await bench.coordinator.update_cancel(BOB) == "Update successfully cancelled"
    assert log(bench)[-1]["update"] == "Complete Manifest update cancelled by user"
    with pytest.raises(NoUpdate):
        await bench.coordinator.update_acknowledge(raw("alice"), BOB)


async def test_an_update_that_cannot_be_applied_is_gone_and_logged(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice", "bob"))
    before = bench.coordinator.manifest()
    broken = raw("alice", Marbles={"web": {"Package": "app", "Parameters": {"Env": {"A": "{{ hex .Secrets.x }}"}}}})
    await bench.coordinator.update_apply(broken, ALICE)
    with pytest.raises(UpdateRefused, match=r"^running manifest template dry run: in Marble web: "):
        await bench.coordinator.update_acknowledge(broken, BOB)
    with pytest.raises(NoUpdate):
        bench.coordinator.update_get()
    assert log(bench)[-1]["update"] == "Complete Manifest update cancelled due to error during apply"
    assert bench.coordinator.manifest() == before


async def test_an_update_that_cannot_be_sealed_changes_nothing(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    before = bench.coordinator.manifest(), bench.coordinator.ca
    bench.store.failing = True
    with pytest.raises(CoordinatorError, match="disk full"):
        await bench.coordinator.update_apply(raw("alice", Marbles={"api": {"Package": "app"}}), ALICE)
    assert (bench.coordinator.manifest(), bench.coordinator.ca) == before
    await bench.activate()


async def test_new_recovery_keys_mean_a_new_data_key(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    keys = {"k": public_pem(recovery_key().public_key()).decode()}
    answer = await bench.coordinator.update_apply(raw("alice", RecoveryKeys=keys), ALICE)
    assert list(answer.recovery_secrets or {}) == ["k"]
    same = await bench.coordinator.update_apply(raw("alice", RecoveryKeys=keys, TLS={}), ALICE)
    assert same.recovery_secrets is None
    removed = await bench.coordinator.update_apply(raw("alice"), ALICE)
    assert removed.recovery_secrets == {}
    assert len(set(bench.store.keys)) == 3


async def test_a_raised_version_stays_with_a_package_that_is_written_as_before(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    await bench.coordinator.update_apply(raised(4), DAVE)
    await bench.coordinator.update_apply(raw("alice", Marbles={"api": {"Package": "app"}}), ALICE)
    with pytest.raises(VerificationFailed, match="at least 4"):
        await bench.activate(marble_type="api")
    lower = raw("alice", Packages={"app": PACKAGE | {"SecurityVersion": 2}})
    await bench.coordinator.update_apply(lower, ALICE)
    await bench.activate()


async def test_budgets_and_user_defined_secrets_outlive_an_update(bench: Bench) -> None:
    limited = {"web": {"Package": "app", "MaxActivations": 1}}
    await bench.coordinator.set_manifest(raw("alice", Marbles=limited))
    await bench.activate()
    await bench.coordinator.update_apply(raw("alice", Marbles=limited, TLS={}), ALICE)
    with pytest.raises(ActivationRefused, match=r"reached max activations count \(1\)"):
        await bench.activate()


async def test_rotating_the_root_secret_keeps_the_old_keys_reachable(bench: Bench) -> None:
    env = {"NOW": "{{ hex .Secrets.k }}", "BEFORE": "{{ hex .Previous.Secrets.k }}"}
    members: dict[str, object] = {
        "Secrets": {"k": {"Type": "symmetric-key", "Size": 128}},
        "Marbles": {"web": {"Package": "app", "Parameters": {"Env": env}}},
    }
    await bench.coordinator.set_manifest(raw("alice", **members))
    first = (await bench.activate(uuid=UUID)).env
    assert first["NOW"] == first["BEFORE"]
    again = (await bench.activate(uuid=UUID)).env
    assert again["NOW"] == first["NOW"]
    await bench.coordinator.update_apply(raw("alice", Config={"RotateRootSecret": True}, **members), ALICE)
    after = (await bench.activate(uuid=UUID)).env
    assert after["BEFORE"] == first["NOW"]
    assert after["NOW"] != first["NOW"]


async def test_running_marbles_stay_if_the_new_manifest_allows_what_was_attested(bench: Bench) -> None:
    two = {"web": {"Package": "app"}, "api": {"Package": "app"}}
    await bench.coordinator.set_manifest(raw("alice", Marbles=two))
    await bench.activate(uuid=UUID)
    await bench.activate(marble_type="api")
    await bench.coordinator.update_apply(raw("alice"), ALICE)
    assert list(bench.mesh._marbles) == [("web", UUID)]
    await bench.coordinator.renewer.step()
    await bench.coordinator.update_apply(raised(4), DAVE)
    assert not bench.mesh._marbles


async def test_after_an_update_new_leaves_verify_under_the_old_root_and_the_new_marble_root(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    root = bench.coordinator.ca.root
    await bench.coordinator.update_apply(raw("alice", TLS={}), ALICE)
    env = (await bench.activate()).env
    chain, key = env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"], env["MARBLE_PREDEFINED_PRIVATE_KEY"]
    identity = Identity(chain, PrivateKey(key))
    for anchor in (root, bench.coordinator.ca.marble_root):
        check_identity(identity, TrustBundle(pem_of(anchor)), bench.clock())
