# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's commits: how each is asked for, and what is different afterwards.

What is known of a state is a mapping as `people.Visit.view` gives it, and `left`, the activations that are left.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from sds.attestation.simulated import SIMULATED_SIGNER
from tests.crash.people import SERVING, UNLIMITED, Refused, Visit
from tests.crash.verdict import Other, View
from tests.kit.records import owners
from tests.kit.users import user

LIMITED = "limited"
USERS = ("alice", "bob", "carol")
FIRST_VERSION = 3
_PACKAGE = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 7, "SecurityVersion": FIRST_VERSION, "Debug": False}
_ROLES = {
    "secrets": {"ResourceType": "Secrets", "ResourceNames": ["key", "cert", "mine"], "Actions": ["ReadSecret"]},
    "writer": {"ResourceType": "Secrets", "ResourceNames": ["mine"], "Actions": ["WriteSecret"]},
    "packages": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
    "manifest": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
}
_SECRETS = {
    "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    "cert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7},
    "mine": {"Type": "plain", "UserDefined": True},
}
Chain = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Commit:
    """`change` gives what is known afterwards, from what was known before and the chain that the Coordinator showed
    when it was asked. `before`: what a start finds that was never asked. `again`: the HTTP or gRPC status that refuses
    it when it has been done, None if it may be done twice."""

    name: str
    send: Callable[[Visit], Awaitable[None]] = field(repr=False)
    change: Callable[[View, Chain], View] = field(repr=False)
    before: Callable[[View], View] = field(repr=False, default=lambda known: known)
    again: int | None = None


def manifest(revision: int, *, threshold: int = 1, owned_by: int | None = None, budget: int = 3) -> bytes:
    """A manifest with everything that is stored: users, secrets, a limited Marble type, counters, maybe a recovery key
    (`owned_by` says whose)."""
    keys = {} if owned_by is None else {"RecoveryKeys": {"owner": owners(2)[owned_by].pem}}
    roles = {"alice": list(_ROLES), "bob": ["manifest"], "carol": ["manifest"]}
    document = {
        "Packages": {"app": _PACKAGE},
        "Marbles": {
            UNLIMITED: {"Package": "app"},
            limited(revision): {"Package": "app", "MaxActivations": budget},
        },
        "Users": {n: {"Certificate": user(n).certificate.decode(), "Roles": roles[n]} for n in USERS},
        "Roles": _ROLES,
        "Secrets": _SECRETS,
        "Config": {"FeatureGates": ["MonotonicCounter"], "UpdateThreshold": threshold},
        **keys,
    }
    return json.dumps(document).encode()


def limited(revision: int) -> str:
    """The Marble type with a budget."""
    return f"{LIMITED}{revision}"


def set_manifest(raw: bytes, budget: int = 3) -> Commit:
    async def send(visit: Visit) -> None:
        answer = await visit.post("/api/v2/manifest", {"manifest": _b64(raw)})
        if (secret := answer["RecoverySecrets"].get("owner")) is not None:
            visit.people.keep_recovery_secret(secret)

    def change(known: View, chain: Chain) -> View:
        return {
            "status": SERVING,
            "intermediate": chain[0],
            "root": chain[1],
            "manifest": raw,
            "log": _logged({"log": ()}, update="Initial manifest set"),
            "pending": None,
            "counter": 0,
            **{f"secret {name}": Other(None) for name in _SECRETS},
            "left": budget,
        }

    return Commit("set manifest", send, change, again=500)


def set_secret(value: bytes) -> Commit:
    async def send(visit: Visit) -> None:
        await visit.post("/api/v2/secrets", {"secrets": {"mine": {"Key": _b64(value)}}})

    def change(known: View, chain: Chain) -> View:
        empty = {"Type": "plain", "Size": 0, "Shared": False, "UserDefined": True, "Cert": None, "ValidFor": 0}
        secret = json.dumps({**empty, "Private": _b64(value), "Public": _b64(value)})
        entry = _logged(known, update="Secret set", user="alice", secret="mine", type="plain")
        return {**known, "secret mine": secret, "log": entry}

    return Commit("set secret", send, change)


def activate(revision: int) -> Commit:
    async def send(visit: Visit) -> None:
        await visit.activate(limited(revision))

    def change(known: View, chain: Chain) -> View:
        left = known["left"]
        assert isinstance(left, int)
        return {**known, "left": left - 1}

    return Commit("activate with MaxActivations", send, change)


def count(value: int) -> Commit:
    async def send(visit: Visit) -> None:
        await visit.count(value)

    return Commit("counter", send, lambda known, chain: {**known, "counter": value})


def raise_version(version: int) -> Commit:
    async def send(visit: Visit) -> None:
        raw = json.dumps({"Packages": {"app": {"SecurityVersion": version}}}).encode()
        await visit.post("/api/v2/update", {"manifest": _b64(raw)})

    def change(known: View, chain: Chain) -> View:
        fields = {"user": "alice", "package": "app", "new version": version}
        return {**known, **_rotated(known), "log": _logged(known, update="SecurityVersion increased", **fields)}

    return Commit("package update", send, change)


def update(raw: bytes, *, left: int) -> Commit:
    """By one who need not ask anybody. `left`: activations of the new manifest's limited type."""

    async def send(visit: Visit) -> None:
        await visit.post("/api/v2/update", {"manifest": _b64(raw)})

    def change(known: View, chain: Chain) -> View:
        text = "Complete Manifest update initiated by user. No further acknowledgements required"
        log = _logged(known, update=text, user="alice", manifestFingerprint=_fingerprint(raw))
        return _in_force({**known, "log": log, "left": left}, raw)

    return Commit("full update", send, change)


def submit(raw: bytes) -> Commit:
    async def send(visit: Visit) -> None:
        await visit.post("/api/v2/update", {"manifest": _b64(raw)})

    def change(known: View, chain: Chain) -> View:
        text = "Complete Manifest update initiated by user. Waiting for acknowledgments to apply the update"
        return _waiting(known, text, raw, "alice", ("bob", "carol"))

    return Commit("multi-party update: submit", send, change, again=500)


def acknowledge(raw: bytes, who: str, missing: tuple[str, ...], *, left: int = 0) -> Commit:
    """By the last one (nobody is missing) it puts the update in force; `left` see `update`."""

    async def send(visit: Visit) -> None:
        await visit.post("/api/v2/update-manifest", {"manifest": _b64(raw)}, who)

    def change(known: View, chain: Chain) -> View:
        known = _waiting(known, "Complete Manifest update acknowledged by user", raw, who, missing)
        return known if missing else _in_force({**known, "pending": None, "left": left}, raw)

    kind = "acknowledge" if missing else "last acknowledgement"
    return Commit(f"multi-party update: {kind}", send, change, again=None if missing else 404)


def cancel(raw: bytes) -> Commit:
    async def send(visit: Visit) -> None:
        await visit.post("/api/v2/update-cancel", {}, "bob")

    def change(known: View, chain: Chain) -> View:
        text = "Complete Manifest update cancelled by user"
        log = _logged(known, update=text, user="bob", manifestFingerprint=_fingerprint(raw))
        return {**known, "pending": None, "log": log}

    return Commit("multi-party update: cancel", send, change, again=404)


def recover() -> Commit:
    async def send(visit: Visit) -> None:
        secret = visit.people.recovery
        signature = owners(2)[0].sign(secret)
        await visit.post(
            "/api/v2/recover", {"recoverySecret": _b64(secret), "recoverySecretSignature": _b64(signature)}
        )

    return Commit(
        "recovery", send, lambda known, chain: known, before=lambda known: {"status": 1, "left": 0}, again=500
    )


async def refused(commit: Commit, visit: Visit) -> int | None:
    """Ask for it; the status if it was refused."""
    try:
        await commit.send(visit)
    except Refused as e:
        return e.status
    return None


def _rotated(known: View) -> View:
    return {part: _other(known[part]) for part in ("intermediate", "secret cert")}


def _in_force(known: View, raw: bytes) -> View:
    log = _logged(known, update="Complete Manifest updated", manifestFingerprint=_fingerprint(raw))
    return {**known, **_rotated(known), "manifest": raw, "log": log}


def _waiting(known: View, text: str, raw: bytes, who: str, missing: tuple[str, ...]) -> View:
    fields = {"user": who, "missingAcknowledgments": len(missing), "missingUsers": list(missing)}
    log = _logged(known, update=text, **fields, manifestFingerprint=_fingerprint(raw))
    return {**known, "pending": (raw, missing), "log": log}


def _other(value: object) -> Other:
    return value if isinstance(value, Other) else Other(value)


def _logged(known: Mapping[str, object], **entry: object) -> tuple[str, ...]:
    log = known["log"]
    assert isinstance(log, tuple)
    return (*log, json.dumps(entry))


def _fingerprint(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
