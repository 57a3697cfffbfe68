# SPDX-License-Identifier: Apache-2.0
"""`Activate`, step by step: when it is served, in which order it checks, how it refuses, and what it counts.

Certificates, quotes, secrets and parameters have files of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib import GRPCError
from grpclib.const import Status

from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import PACKAGE, Bench, MemoryStore, manifest
from tests.kit.deployment import b64
from tests.kit.marble_client import MarbleCredentials
from tests.kit.marble_deployment import CHAIN, NIL, UUID, MarbleDeployment, Refusal, deployed, somebody, web
from tests.kit.openssl_judge import x509
from tests.kit.users import public_pem, recovery_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
UNSET = {"Env": {"E": "{{ string .Secrets.unset }}"}}
SECRETS = {"unset": {"Type": "plain", "UserDefined": True}, "own": {"Type": "symmetric-key", "Size": 256}}
TYPES: dict[str, dict[str, object]] = {
    "web": {"Package": "app", "Parameters": {"Env": {"KEY": "{{ hex .Secrets.own }}"}}},
    "foreign": {"Package": "other"},
    "spent": {"Package": "app", "MaxActivations": 1},
    "spent-foreign": {"Package": "other", "MaxActivations": 1},
    "unset": {"Package": "app", "Parameters": UNSET},
    "limited-unset": {"Package": "app", "Parameters": UNSET, "MaxActivations": 1},
}
BAD_CSR = replace(somebody(), csr=b"no request")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    """Two packages, of which the Marbles here have one; `spent` has used up its budget."""
    packages = {"app": PACKAGE, "other": PACKAGE | {"ProductID": 99}}
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(manifest(Packages=packages, Marbles=TYPES, Secrets=SECRETS))
        await made.activate("spent")
        yield made


# --- states


WAIT = Refusal(Status.FAILED_PRECONDITION, "cannot accept marbles in current state")


async def test_before_a_manifest_nobody_is_activated(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as fresh:
        assert (await fresh.get("/status")).data["StatusCode"] == 2
        assert await fresh.refusal() == WAIT


async def test_in_recovery_nobody_is_activated(machine: Path, tmp_path: Path) -> None:
    first = Bench.make(machine)
    async with deployed(first, tmp_path) as made:
        keys = {"owner": public_pem(recovery_key().public_key()).decode()}
        await made.set_manifest(manifest(RecoveryKeys=keys))
    locked = Bench.make(machine, store=first.store, locked=first.store.recovery_data)
    async with deployed(locked, tmp_path) as made:
        assert (await made.get("/status")).data["StatusCode"] == 1
        assert await made.refusal() == WAIT


async def test_once_a_manifest_is_set_marbles_are(town: MarbleDeployment) -> None:
    assert (await town.get("/status")).data["StatusCode"] == 3
    assert (await town.activate()).env


# --- refusals


async def test_an_unknown_type_is_denied(town: MarbleDeployment) -> None:
    assert await town.refusal("nobody") == Refusal(
        Status.PERMISSION_DENIED, "marble verification failed: unknown marble type requested"
    )


@pytest.mark.parametrize("name", ["", "Web", "web ", "x" * 100_000], ids=["empty", "case", "blank", "long"])
async def test_types_are_compared_as_they_are(town: MarbleDeployment, name: str) -> None:
    assert (await town.refusal(name)).message.endswith(": unknown marble type requested")


@pytest.mark.parametrize(
    "uuid",
    [
        "",
        "x",
        UUID[:-1],
        UUID + "0",
        UUID + "\n",
        UUID.replace("-", "_"),
        "{" + UUID,
        UUID + "}",
        "(" + UUID + ")",
        "urn:" + UUID,
        "uuid:urn:" + UUID,
        "{" + UUID.replace("-", "") + "}",
        UUID.replace("a", "g"),
        "0" * 31,
    ],
)
async def test_what_is_no_uuid_is_an_invalid_argument(town: MarbleDeployment, uuid: str) -> None:
    refusal = await town.refusal(uuid=uuid)
    assert refusal.status is Status.INVALID_ARGUMENT
    assert refusal.message.startswith("invalid UUID: ")


@pytest.mark.parametrize("uuid", [NIL, NIL.replace("-", ""), "{" + NIL + "}", "urn:uuid:" + NIL])
async def test_the_nil_uuid_is_nobody(town: MarbleDeployment, uuid: str) -> None:
    """To MarbleRun it means "shared": it would get placeholders, and shared secrets of its own."""
    refusal = await town.refusal(uuid=uuid)
    assert refusal.status is Status.INVALID_ARGUMENT
    assert refusal.message.startswith("invalid UUID: the nil UUID")


@pytest.mark.parametrize("csr", [b"", b"no request", somebody().csr[:-10]], ids=["none", "text", "half"])
async def test_a_request_that_cannot_be_parsed_is_an_internal_error(town: MarbleDeployment, csr: bytes) -> None:
    refusal = await town.refusal(who=replace(somebody(), csr=csr))
    assert refusal.status is Status.INTERNAL
    assert refusal.message.startswith("generating marble authentication secrets: parsing CSR: ")


async def test_a_request_that_is_not_signed_by_its_key_is_an_internal_error(town: MarbleDeployment) -> None:
    csr = bytearray(somebody().csr)
    csr[-1] ^= 1
    assert await town.refusal(who=replace(somebody(), csr=bytes(csr))) == Refusal(
        Status.INTERNAL, "generating marble authentication secrets: signature over CSR is invalid"
    )


async def test_an_unset_user_defined_secret_fails_with_its_place(town: MarbleDeployment) -> None:
    assert await town.refusal("unset") == Refusal(
        Status.INTERNAL,
        'customizing marble parameters: parsing secrets for env variable "E": template: data:1:3: executing "data" at '
        "<string .Secrets.unset>: error calling string: tried to parse secret with empty value",
    )


async def test_a_certificate_that_cannot_be_made_any_more_is_an_internal_error(machine: Path, tmp_path: Path) -> None:
    """The manifest was fine when it was set; the certificate's end has come since."""
    bench = Bench.make(machine)
    end = (bench.clock() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    secrets = {"c": {"Type": "cert-ecdsa", "Size": 256, "Cert": {"NotAfter": end}}}
    async with deployed(bench, tmp_path) as town:
        await town.set_manifest(manifest(Secrets=secrets, Marbles=web(Env={"E": "{{ pem .Secrets.c.Cert }}"})))
        await town.activate()
        bench.clock.forward(timedelta(hours=2))
        refusal = await town.refusal()
    assert refusal.status is Status.INTERNAL
    assert refusal.message.startswith("generating marble secrets: secret c: ")


# --- the order of the checks


@pytest.mark.parametrize(
    ("marble_type", "uuid", "who", "first"),
    [
        ("nobody", "no uuid", BAD_CSR, "marble verification failed: unknown marble type requested"),
        ("foreign", "no uuid", BAD_CSR, "marble verification failed: invalid quote: "),
        ("spent", "no uuid", BAD_CSR, "marble verification failed: reached max activations count (1)"),
        ("unset", "no uuid", BAD_CSR, "invalid UUID: "),
        ("unset", UUID, BAD_CSR, "generating marble authentication secrets: parsing CSR: "),
        ("unset", UUID, somebody(), "customizing marble parameters: "),
    ],
    ids=["type", "quote", "budget", "UUID", "request", "parameters"],
)
async def test_the_first_check_that_fails_is_the_one_that_is_named(
    town: MarbleDeployment, marble_type: str, uuid: str, who: MarbleCredentials, first: str
) -> None:
    """State, type, quote, budget, UUID, request, parameters."""
    assert (await town.refusal(marble_type, uuid, who=who)).message.startswith(first)


# --- UUIDs


@pytest.mark.parametrize(
    "uuid",
    [UUID, UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}", "urn:uuid:" + UUID, "URN:UUID:" + UUID.upper()],
    ids=["canonical", "upper case", "32 digits", "braces", "URN", "URN in upper case"],
)
async def test_every_accepted_form_of_a_uuid_is_one_instance(town: MarbleDeployment, uuid: str) -> None:
    """The name in the certificate and the key derived from it are those of the lower-case form with 36 characters."""
    one, canonical = await town.activate(uuid=uuid), await town.activate(uuid=UUID)
    assert x509(one.env[CHAIN], "-subject") == f"subject=CN = {UUID}"
    assert one.env["KEY"] == canonical.env["KEY"]


# --- the budget


def spent(marble_type: str, count: int) -> Refusal:
    text = f'marble verification failed: reached max activations count ({count}) for marble type "{marble_type}"'
    return Refusal(Status.PERMISSION_DENIED, text)


def with_budgets(**budgets: int) -> bytes:
    marbles = {name: {"Package": "app", "MaxActivations": budget} for name, budget in budgets.items()}
    return manifest(Marbles=marbles, Secrets=SECRETS)


async def test_an_exhausted_budget_is_denied(town: MarbleDeployment) -> None:
    assert await town.refusal("spent") == spent("spent", 1)


async def test_the_budget_counts_types_not_instances(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(with_budgets(a=2, b=2))
        await town.activate("a", UUID)
        await town.activate("a", UUID)  # a restart of the same instance takes another unit
        assert await town.refusal("a", UUID) == await town.refusal("a", OTHER) == spent("a", 2)
        await town.activate("b", OTHER)  # another type has its own


async def test_a_budget_of_0_is_none(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(with_budgets(a=0))
        for _ in range(3):
            await town.activate("a")


async def test_what_is_refused_does_not_count(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(manifest(Marbles=TYPES, Secrets=SECRETS, Packages={"app": PACKAGE, "other": PACKAGE}))
        for changes in ({"uuid": "x"}, {"who": BAD_CSR}, {"quote": b""}):
            await town.refusal("spent", **changes)
        for _ in range(2):
            assert (await town.refusal("limited-unset")).message.startswith("customizing marble parameters: ")
        await town.activate("spent")


async def test_many_at_once_do_not_overdraw_it(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(with_budgets(a=3))
        outcomes = await asyncio.gather(*(town.activate("a") for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(outcome, Parameters) for outcome in outcomes) == 3
        refused = {outcome.message for outcome in outcomes if isinstance(outcome, GRPCError)}
        assert refused == {spent("a", 3).message}


async def test_a_restarted_coordinator_goes_on_counting(machine: Path, tmp_path: Path) -> None:
    first = Bench.make(machine)
    async with deployed(first, tmp_path) as town:
        await town.set_manifest(with_budgets(a=2))
        await town.activate("a")
    async with deployed(first.restarted(machine), tmp_path) as town:
        await town.activate("a")
        assert await town.refusal("a") == spent("a", 2)


async def test_an_activation_that_cannot_be_committed_is_none(machine: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    async with deployed(Bench.make(machine, store=store), tmp_path) as town:
        await town.set_manifest(with_budgets(a=1, free=0))
        store.failing = True
        assert await town.refusal("a") == Refusal(Status.INTERNAL, "committing store transaction: disk full")
        assert await town.events() is None
        await town.activate("free")  # without a budget there is nothing to commit
        store.failing = False
        await town.activate("a")


# --- metrics and events


async def test_attempts_are_counted_before_they_are_checked_and_successes_after(machine: Path, tmp_path: Path) -> None:
    tried, done = "coordinator_marble_activations_total", "coordinator_marble_activations_success_total"
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(manifest())
        await town.refusal(quote=b"")
        assert await town.metric(f'{tried}{{type="web",uuid="other"}}') == 1
        await town.activate()
        await town.activate()
        await town.refusal(quote=b"")
        labels = f'{{type="web",uuid="{UUID}"}}'
        assert (await town.metric(tried + labels), await town.metric(done + labels)) == (2, 2)


async def test_labels_that_strangers_choose_are_bounded(town: MarbleDeployment) -> None:
    """MarbleRun takes any text for a label."""
    for number in range(3):
        await town.refusal(f"nobody-{number}", f"no uuid {number}")
    assert await town.metric('coordinator_marble_activations_total{type="unknown",uuid="other"}') >= 3


async def test_grpc_calls_are_counted_with_their_code(town: MarbleDeployment) -> None:
    labels = 'grpc_method="Activate",grpc_service="rpc.Marble",grpc_type="unary"'
    name = f'grpc_server_handled_total{{grpc_code="PermissionDenied",{labels}}}'
    before, started = await town.metric(name), await town.metric(f"grpc_server_started_total{{{labels}}}")
    await town.refusal("nobody")
    assert await town.metric(name) == before + 1
    assert await town.metric(f"grpc_server_started_total{{{labels}}}") == started + 1


async def test_each_activation_is_an_event_with_type_uuid_as_sent_and_quote(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        assert await town.events() is None
        await town.set_manifest(manifest())
        await town.refusal(quote=b"")
        quote = town.quote()
        await town.activate(uuid=UUID.upper(), quote=quote)
        listed: Any = await town.events()
    (event,) = listed
    assert set(event) == {"time", "activation"}
    assert event["activation"] == {"marbleType": "web", "uuid": UUID.upper(), "quote": b64(quote)}
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"]).tzinfo is not None
