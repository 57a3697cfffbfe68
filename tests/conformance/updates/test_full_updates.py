# SPDX-License-Identifier: Apache-2.0
"""Full updates: who submits, who must agree, what is said meanwhile, and who may call it off."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conformance.updates.conftest import Serve
from tests.kit.client_api import Answer
from tests.kit.deployment import ERROR, JSON, b64
from tests.kit.key_owner import key_owner
from tests.kit.outside import Outside
from tests.kit.parties import raising, raw
from tests.kit.site import site

TWO, THREE = ("alice", "bob"), ("alice", "bob", "carol")
NEW = raw("alice", TLS={})
IN_PROGRESS = "update already in progress. Acknowledge the update to apply it, or cancel it to start a new one"
ONE_LEFT = "1 user still needs to acknowledge the update manifest"
APPLIED = "All users have acknowledged the update manifest. Update successfully applied"


def waiting(answer: Answer) -> tuple[int, list[str] | None]:
    assert list(answer.data) == ["missingAcknowledgments", "missingUsers"]
    return answer.data["missingAcknowledgments"], answer.data["missingUsers"]


async def in_force(outside: Outside) -> str:
    manifest: str = (await outside.get("/api/v2/manifest")).data["manifest"]
    return manifest


# --- submitting


async def test_the_only_one_who_may_update_does_so_at_once(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    answer = await outside.update(NEW)
    assert answer.body == b'{"status":"success","data":{"missingAcknowledgments":0,"missingUsers":null}}\n'
    assert await in_force(outside) == b64(NEW)


async def test_in_version_1_too_with_nothing_to_say(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    answer = await outside.post("/update", NEW, "alice")
    assert answer.body == b'{"status":"success","data":null}\n'
    assert await in_force(outside) == b64(NEW)


@pytest.mark.parametrize(
    ("users", "threshold", "missing"),
    [
        (TWO, 0, (1, ["bob"])),
        (THREE, 0, (2, ["bob", "carol"])),
        (THREE, 1, (0, None)),
        (THREE, 2, (1, ["bob", "carol"])),
        (THREE, 3, (2, ["bob", "carol"])),
    ],
)
async def test_the_submitter_counts_and_the_threshold_or_all_who_may_update_must_agree(
    serve: Serve, users: tuple[str, ...], threshold: int, missing: tuple[int, list[str] | None]
) -> None:
    first = raw(*users, Config={"UpdateThreshold": threshold})
    outside = (await serve(first)).outside
    assert waiting(await outside.update(NEW)) == missing
    assert await in_force(outside) == b64(first if missing[0] else NEW)


async def test_the_threshold_of_the_manifest_in_force_counts_not_the_new_one_s(serve: Serve) -> None:
    outside = (await serve(raw(*THREE, Config={"UpdateThreshold": 2}))).outside
    assert waiting(await outside.update(raw(*THREE, Config={"UpdateThreshold": 1}))) == (1, ["bob", "carol"])


async def test_a_threshold_that_is_too_high_is_refused_in_an_update_as_at_the_start(serve: Serve) -> None:
    outside = (await serve(raw("alice"))).outside
    answer = await outside.update(raw("alice", Config={"UpdateThreshold": 2}))
    text = "not enough users with manifest update permissions (1) to meet the threshold of 2"
    assert (answer.status, answer.message.startswith(f"invalid manifest: checking manifest: {text}")) == (500, True)


@pytest.mark.parametrize(
    ("update", "who", "text"),
    [
        (NEW, "dave", "user dave is not allowed to update the complete manifest"),
        (raw("alice", Marbles={"web": {"Package": "x"}}), "alice", "manifest does not contain marble package x"),
        (raw("alice", Marbles={"": {}}), "alice", "invalid manifest: "),
    ],
)
async def test_an_update_that_is_refused_says_why_and_none_is_pending(
    serve: Serve, update: bytes, who: str, text: str
) -> None:
    outside = (await serve(raw("alice"))).outside
    answer = await outside.update(update, who)
    assert (answer.status, answer.kind) == (500, ERROR)
    assert text in answer.message
    assert (await outside.pending()).status == 404


# --- what everybody sees meanwhile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pending(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outside]:
    """Alice has submitted NEW; bob and carol are asked. Nothing that the tests do may change that."""
    async with site(tmp_path_factory.mktemp("pending"), raw(*THREE)) as running:
        assert waiting(await running.outside.update(NEW)) == (2, ["bob", "carol"])
        before = running.file()
        yield running.outside
        assert running.file() == before


module = pytest.mark.asyncio(loop_scope="module")


@module
@pytest.mark.parametrize("path", ["/api/v2/update-manifest", "/update-manifest"])
async def test_anybody_sees_the_pending_update(pending: Outside, path: str) -> None:
    answer = await pending.get(path)
    assert list(answer.data) == ["manifest", "message", "missingUsers"]
    assert answer.data == {
        "manifest": b64(NEW),
        "message": "2 users still need to acknowledge the update manifest",
        "missingUsers": ["bob", "carol"],
    }


@module
async def test_the_manifest_in_force_is_the_old_one(pending: Outside) -> None:
    assert await in_force(pending) == b64(raw(*THREE))
    await pending.activate()


@module
@pytest.mark.parametrize(
    ("update", "who"),
    [(NEW, "alice"), (NEW, "bob"), (raw("bob"), "bob"), (raising(app=9), "dave")],
    ids=["the same", "by another", "another", "of a package"],
)
async def test_a_second_update_waits_its_turn(pending: Outside, update: bytes, who: str) -> None:
    answer = await pending.update(update, who)
    assert (answer.status, answer.kind, answer.message) == (500, ERROR, IN_PROGRESS)


@module
async def test_in_version_1_a_refusal_is_a_400(pending: Outside) -> None:
    answer = await pending.post("/update", NEW, "alice")
    assert (answer.status, answer.kind, answer.message) == (400, ERROR, IN_PROGRESS)


@module
@pytest.mark.parametrize(
    ("raw", "who", "text"),
    [
        (NEW, "dave", "user dave is not allowed to acknowledge manifest updates"),
        (NEW + b" ", "bob", "provided manifest does not match the pending manifest"),
        (b"", "alice", "provided manifest does not match the pending manifest"),
    ],
)
async def test_an_acknowledgement_is_by_who_was_asked_and_of_the_very_same_bytes(
    pending: Outside, raw: bytes, who: str, text: str
) -> None:
    v2, v1 = await pending.acknowledge(raw, who), await pending.post("/update-manifest", raw, who)
    assert (v2.status, v2.kind, v2.message) == (500, ERROR, text)
    assert (v1.status, v1.kind, v1.message) == (500, ERROR, text)


@module
async def test_the_submitter_s_own_acknowledgement_changes_nothing(pending: Outside) -> None:
    users = "The following users have not yet accepted: bob, carol"
    message = f"2 users still need to acknowledge the update manifest.\n{users}"
    v2 = await pending.acknowledge(NEW, "alice")
    assert list(v2.data) == ["message", "missingUsers", "missingAcknowledgments"]
    assert v2.data == {"message": message, "missingUsers": ["bob", "carol"], "missingAcknowledgments": 2}
    assert (await pending.post("/update-manifest", NEW, "alice")).data == message


@module
async def test_it_is_cancelled_by_none_but_those_who_may_update(pending: Outside) -> None:
    for path in ("/api/v2/update-cancel", "/update-cancel"):
        answer = await pending.post(path, b"", "dave")
        assert (answer.status, answer.kind) == (500, ERROR)
        assert answer.message == "user dave is not allowed to cancel the manifest update"


PATHS = ["update", "update-manifest", "update-cancel"]


@module
@pytest.mark.parametrize(("path", "who"), [*((path, "mallory") for path in PATHS), ("update", None)])
async def test_who_is_no_user_is_told_so_before_anything_else(pending: Outside, path: str, who: str | None) -> None:
    for prefix, kind, envelope in (("/api/v2/", JSON, "fail"), ("/", ERROR, "error")):
        answer = await pending.post(prefix + path, b"{", who)
        assert (answer.status, answer.kind, answer.json["status"]) == (401, kind, envelope)
        assert answer.message == "unauthorized user: client certificate did not match any MarbleRun users"


@module
@pytest.mark.parametrize(
    ("path", "body"),
    [("update", b""), ("update", b"["), ("update", b'{"manifest":"?"}'), ("update-manifest", b'{"manifest":1}')],
)
async def test_a_malformed_request_is_a_fail(pending: Outside, path: str, body: bytes) -> None:
    answer = await pending.post(f"/api/v2/{path}", body, "alice")
    assert (answer.status, answer.kind, answer.json["status"]) == (400, JSON, "fail")


# --- acknowledging


async def test_the_last_acknowledgement_puts_it_in_force(serve: Serve) -> None:
    outside = (await serve(raw(*THREE))).outside
    await outside.update(NEW)
    first = await outside.acknowledge(NEW, "carol")
    assert first.data["message"] == f"{ONE_LEFT}.\nThe following users have not yet accepted: bob"
    assert (first.data["missingUsers"], first.data["missingAcknowledgments"]) == (["bob"], 1)
    assert (await outside.pending()).data["message"] == ONE_LEFT
    last = await outside.acknowledge(NEW, "bob")
    assert last.body == (
        b'{"status":"success","data":{"message":"%s","missingUsers":null,"missingAcknowledgments":0}}\n'
        % APPLIED.encode()
    )
    assert (await in_force(outside), (await outside.pending()).status) == (b64(NEW), 404)


async def test_in_version_1_the_sentence_alone_is_the_answer(serve: Serve) -> None:
    """Its first word is what tools read: `All`, or how many are missing."""
    outside = (await serve(raw(*THREE))).outside
    await outside.update(NEW)
    answers = [await outside.post("/update-manifest", NEW, who) for who in ("bob", "carol")]
    assert [answer.data for answer in answers] == [
        f"{ONE_LEFT}.\nThe following users have not yet accepted: carol",
        APPLIED,
    ]


async def test_acknowledging_twice_counts_once(serve: Serve) -> None:
    outside = (await serve(raw(*THREE))).outside
    await outside.update(NEW)
    answers = [await outside.acknowledge(NEW, "bob") for _ in range(2)]
    assert answers[0].body == answers[1].body
    assert (await outside.pending()).data["missingUsers"] == ["carol"]


async def test_a_threshold_is_enough_whoever_it_is(serve: Serve) -> None:
    outside = (await serve(raw(*THREE, Config={"UpdateThreshold": 2}))).outside
    await outside.update(NEW, "bob")
    assert (await outside.acknowledge(NEW, "carol")).data["missingAcknowledgments"] == 0
    assert await in_force(outside) == b64(NEW)


async def test_whoever_makes_it_complete_gets_the_new_recovery_secrets(serve: Serve) -> None:
    running = await serve(raw(*TWO))
    owner = key_owner(running.home)
    new = raw(*TWO, RecoveryKeys={"owner": owner.pem})
    assert "recoverySecrets" not in (await running.outside.update(new)).data
    answer = (await running.outside.acknowledge(new, "bob")).data
    assert list(answer) == ["message", "missingUsers", "missingAcknowledgments", "recoverySecrets"]
    assert len(owner.decrypt(answer["recoverySecrets"]["owner"])) == 32


async def test_recovery_keys_that_are_removed_are_an_empty_map(serve: Serve) -> None:
    running = await serve(raw("alice"))
    await running.outside.update(raw("alice", RecoveryKeys={"owner": key_owner(running.home).pem}))
    removed = await running.outside.update(raw("alice"))
    assert removed.body == (
        b'{"status":"success","data":{"missingAcknowledgments":0,"missingUsers":null,"recoverySecrets":{}}}\n'
    )


# --- cancelling


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_any_one_who_may_update_calls_it_off(serve: Serve, who: str) -> None:
    outside = (await serve(raw(*TWO))).outside
    await outside.update(NEW)
    answer = await outside.cancel(who)
    assert answer.body == b'{"status":"success","data":{"message":"Update successfully cancelled"}}\n'
    assert (await outside.acknowledge(NEW, "bob")).status == 404
    assert waiting(await outside.update(raw(*TWO))) == (1, ["bob"]), "the next one may come"
    assert (await outside.post("/update-cancel", b"", who)).data == "Update successfully cancelled"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "update-manifest"), ("POST", "update-manifest"), ("POST", "update-cancel")]
)
async def test_without_an_update_there_is_none_to_see_or_agree_to_or_cancel(
    serve: Serve, method: str, path: str
) -> None:
    outside = (await serve(raw("alice"))).outside
    for prefix in ("/api/v2/", "/"):
        body: dict[str, object] = {"manifest": b64(NEW)}
        request = outside.get(prefix + path) if method == "GET" else outside.post(prefix + path, body, "alice")
        answer = await request
        assert (answer.status, answer.kind, answer.message) == (404, ERROR, "no update in progress")


# --- applying fails


async def test_an_update_that_cannot_be_applied_is_gone_and_the_old_manifest_in_force(serve: Serve) -> None:
    first = raw(*TWO)
    outside = (await serve(first)).outside
    ca = await outside.ca()
    broken = raw("alice", Marbles={"web": {"Package": "app", "Parameters": {"Env": {"A": "{{ hex .Secrets.x }}"}}}})
    assert waiting(await outside.update(broken)) == (1, ["bob"])
    answer = await outside.acknowledge(broken, "bob")
    assert (answer.status, answer.kind) == (500, ERROR)
    assert answer.message.startswith("running manifest template dry run: in Marble web: env variable: A: template: ")
    assert ((await outside.pending()).status, await in_force(outside), await outside.ca()) == (404, b64(first), ca)
    await outside.activate()


async def test_an_update_that_cannot_be_written_changes_nothing(serve: Serve) -> None:
    first = raw("alice")
    running = await serve(first)
    ca, elsewhere = await running.outside.ca(), running.state.rename(running.home / "elsewhere")
    answer = await running.outside.update(NEW)
    assert (answer.status, answer.kind) == (500, ERROR)
    assert (await in_force(running.outside), await running.outside.ca()) == (b64(first), ca)
    await running.outside.activate()
    elsewhere.rename(running.state)
    assert waiting(await running.outside.update(NEW)) == (0, None)
