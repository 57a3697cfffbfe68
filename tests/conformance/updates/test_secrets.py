# SPDX-License-Identifier: Apache-2.0
"""What a full update does to secrets, by their definitions: kept, made anew, emptied, gone; and what is previous then.

Marbles show the values of generated secrets, of both generations; users read their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.conformance.updates.conftest import Serve
from tests.kit.deployment import b64
from tests.kit.outside import Outside
from tests.kit.parties import raw
from tests.kit.sealed import unseal
from tests.kit.site import INSECURE

Definition = dict[str, Any]

KEY: Definition = {"Type": "symmetric-key", "Size": 128, "Shared": True}
OWN: Definition = {"Type": "symmetric-key", "Size": 128}
CERT: Definition = {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7}
PLAIN: Definition = {"Type": "plain", "UserDefined": True}
EMPTY = {"Cert": None, "Private": None, "Public": None}
ROTATE = {"Config": {"RotateRootSecret": True}}


class Generations:
    """One secret's values before and after an update: (value, previous value)."""

    def __init__(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        self.before = before["s"], before["previous_s"]
        self.after = after["s"], after["previous_s"]

    @property
    def kept(self) -> bool:
        return self.before == self.after

    @property
    def old_is_previous(self) -> bool:
        """Made anew, and the old one can still be had."""
        return self.after[0] != self.before[0] and self.after[1] == self.before[0]

    @property
    def forgotten(self) -> bool:
        """Made anew, and the old one cannot be had: both generations are the new one."""
        return self.before[0] not in self.after and self.after[0] == self.after[1]


async def updated(serve: Serve, before: Definition, after: Definition, **members: object) -> Generations:
    """The secret `s` through an update that defines it as `after`."""
    outside = (await serve(raw("alice", Secrets={"s": before}))).outside
    first = await outside.activate()
    answer = await outside.update(raw("alice", Secrets={"s": after}, **members))
    assert answer.status == 200, answer.body
    return Generations(first, await outside.activate())


# --- unchanged


@pytest.mark.parametrize("definition", [KEY, OWN], ids=["shared", "per Marble"])
async def test_an_unchanged_key_is_kept(serve: Serve, definition: Definition) -> None:
    assert (await updated(serve, definition, definition)).kept


@pytest.mark.parametrize("definition", [KEY, OWN], ids=["shared", "per Marble"])
async def test_with_rotate_root_secret_a_key_is_new_and_the_old_one_previous(
    serve: Serve, definition: Definition
) -> None:
    assert (await updated(serve, definition, definition, **ROTATE)).old_is_previous


@pytest.mark.parametrize("config", [{}, ROTATE], ids=["", "RotateRootSecret"])
@pytest.mark.parametrize(
    "definition",
    [
        CERT,
        {"Type": "cert-ed25519", "Shared": True, "ValidFor": 7},
        {"Type": "cert-rsa", "Size": 1024, "Shared": True, "ValidFor": 7},
        {"Type": "cert-ecdsa", "Size": 256, "Shared": True},
    ],
    ids=["ecdsa", "ed25519", "rsa", "without ValidFor"],
)
async def test_a_certificate_is_new_and_the_old_one_previous(
    serve: Serve, definition: Definition, config: dict[str, object]
) -> None:
    assert (await updated(serve, definition, definition, **config)).old_is_previous


@pytest.mark.parametrize("definition", [KEY, OWN, CERT], ids=["shared key", "per Marble", "certificate"])
async def test_previous_is_the_value_before_the_last_update_that_made_a_new_one(
    serve: Serve, definition: Definition
) -> None:
    raws = [raw("alice", Secrets={"s": definition}, Marbles=marbles(name), **ROTATE) for name in ("a", "b")]
    outside = (await serve(raw("alice", Secrets={"s": definition}))).outside
    values = []
    for update in raws:
        assert (await outside.update(update)).status == 200
        values.append(await outside.activate())
    assert values[1]["previous_s"] == values[0]["s"] != values[0]["previous_s"]


def marbles(more: str) -> dict[str, object]:
    """`web`, which shows the secret, and one more."""
    env = {"s": "{{ hex .Secrets.s }}", "previous_s": "{{ hex .Previous.Secrets.s }}"}
    return {"web": {"Package": "app", "Parameters": {"Env": env}}, more: {"Package": "app"}}


async def test_the_certificate_s_template_is_no_part_of_its_definition(serve: Serve) -> None:
    assert (await updated(serve, CERT, CERT | {"Cert": {"Subject": {"CommonName": "new"}}})).old_is_previous


@pytest.mark.parametrize("config", [{}, ROTATE], ids=["", "RotateRootSecret"])
async def test_what_a_user_has_set_is_kept(serve: Serve, config: dict[str, object]) -> None:
    outside = (await serve(raw("alice", Secrets={"s": PLAIN}))).outside
    await upload(outside)
    assert (await outside.update(raw("alice", Secrets={"s": PLAIN}, **config))).status == 200
    assert (await outside.secrets("s"))["s"]["Private"] == b64(b"0123456789abcdef")


async def upload(outside: Outside) -> None:
    body = {"secrets": {"s": {"Key": b64(b"0123456789abcdef")}}}
    assert (await outside.post("/api/v2/secrets", body, "alice")).status == 200


# --- changed or new


CHANGED: dict[str, tuple[Definition, Definition]] = {
    "Type": (CERT, CERT | {"Type": "cert-ed25519", "Size": 0}),
    "Size of a key": (KEY, KEY | {"Size": 256}),
    "Size of a certificate's key": (CERT, CERT | {"Size": 384}),
    "no more Shared": (KEY, OWN),
    "Shared": (OWN, KEY),
    "ValidFor": (CERT, CERT | {"ValidFor": 8}),
    "no more UserDefined": (KEY | {"UserDefined": True}, KEY),
}


@pytest.mark.parametrize("member", [name for name in CHANGED if "User" not in name])
async def test_another_definition_makes_a_new_secret_without_a_past(serve: Serve, member: str) -> None:
    assert (await updated(serve, *CHANGED[member])).forgotten


async def test_what_was_user_defined_and_is_generated_now_has_no_past(serve: Serve) -> None:
    before, after = CHANGED["no more UserDefined"]
    outside = (await serve(raw("alice", Secrets={"s": before}))).outside
    await upload(outside)
    await outside.update(raw("alice", Secrets={"s": after}))
    env = await outside.activate()
    assert env["s"] == env["previous_s"] != b"0123456789abcdef".hex().encode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (KEY, KEY | {"UserDefined": True}),
        (PLAIN, {"Type": "symmetric-key", "Size": 128, "UserDefined": True}),
        (KEY | {"UserDefined": True}, KEY | {"UserDefined": True, "Size": 256}),
        (KEY | {"UserDefined": True}, KEY | {"UserDefined": True, "Shared": False}),
        (KEY | {"UserDefined": True}, KEY | {"UserDefined": True, "ValidFor": 1}),
    ],
    ids=["UserDefined", "Type", "Size", "Shared", "ValidFor"],
)
async def test_a_user_defined_secret_of_another_definition_is_empty_again(
    serve: Serve, before: Definition, after: Definition
) -> None:
    outside = (await serve(raw("alice", Secrets={"s": before}))).outside
    if before.get("UserDefined"):
        await upload(outside)
    await outside.update(raw("alice", Secrets={"s": after}))
    shown = (await outside.secrets("s"))["s"]
    assert {name: shown[name] for name in EMPTY} == EMPTY


@pytest.mark.parametrize("definition", [KEY, OWN, CERT], ids=["shared key", "per Marble", "certificate"])
async def test_a_new_secret_is_its_own_previous_one(serve: Serve, definition: Definition) -> None:
    outside = (await serve(raw("alice"))).outside
    await outside.update(raw("alice", Secrets={"s": definition}))
    env = await outside.activate()
    assert env["s"] == env["previous_s"] != b""


async def test_a_new_user_defined_secret_is_empty(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    await outside.update(raw("alice", Secrets={"s": PLAIN}))
    shown = (await outside.secrets("s"))["s"]
    assert {name: shown[name] for name in EMPTY} == EMPTY


# --- removed


@pytest.mark.parametrize("definition", [KEY, OWN, CERT, PLAIN])
async def test_a_removed_secret_is_deleted_with_its_previous_value(serve: Serve, definition: Definition) -> None:
    running = await serve(raw("alice", Secrets={"s": definition, "t": KEY}), **INSECURE)
    assert {"secret:s", "previousSecret:s"} <= set(unseal(running.file(), running.file("sealed_key")))
    await running.outside.update(raw("alice", Secrets={"t": KEY}))
    left = set(unseal(running.file(), running.file("sealed_key")))
    assert {key for key in left if "ecret:" in key} == {"secret:t", "previousSecret:t"}
    gone = await running.outside.get("/api/v2/secrets?s=s", "alice")
    assert gone.message == "user alice is not allowed to read one or more secrets of: [s]"


# --- the root secret


async def test_the_root_secret_changes_with_rotate_root_secret_only_and_the_old_one_stays_as_previous(
    serve: Serve,
) -> None:
    running = await serve(raw("alice"), **INSECURE)

    def roots() -> tuple[bytes, bytes]:
        entries = unseal(running.file(), running.file("sealed_key"))
        return entries["rootSecret"], entries["previousRootSecret"]

    first, same = roots()
    assert (first, len(first)) == (same, 32)
    await running.outside.update(raw("alice", TLS={}))
    assert roots() == (first, first)
    await running.outside.update(raw("alice", **ROTATE))
    second, previous = roots()
    assert (previous, second == first, len(second)) == (first, False, 32)
    await running.outside.update(raw("alice"))
    assert roots() == (second, first)
    await running.outside.update(raw("alice", **ROTATE))
    third, previous = roots()
    assert (previous, third in (first, second)) == (second, False)
