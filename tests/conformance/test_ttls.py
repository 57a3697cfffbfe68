# SPDX-License-Identifier: Apache-2.0
"""`MARBLE_TTLS_CONFIG`: which connections an EGo or Edgeless RT runtime wraps in TLS itself, and with what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib.const import Status

from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import b64
from tests.kit.marble_deployment import CHAIN, PRIVATE_KEY, ROOT_CA, MarbleDeployment, deployed, owned, waiting
from tests.kit.openssl_judge import certificates, openssl, public_key, verifies
from tests.kit.users import user

pytestmark = pytest.mark.asyncio(loop_scope="module")

TTLS = "MARBLE_TTLS_CONFIG"
ALICE = user("alice")
SECRETS: dict[str, dict[str, object]] = {
    "own": {"Type": "cert-ecdsa", "Size": 256},
    "shared": {"Type": "cert-ecdsa", "Size": 256, "Shared": True},
    "uploaded": {"Type": "cert-ecdsa", "UserDefined": True},
    "unset": {"Type": "cert-ecdsa", "UserDefined": True},
}


def showing(port: str, secret: str) -> dict[str, object]:
    return {"Port": port, "Cert": secret, "DisableClientAuth": True}


TAGS: dict[str, dict[str, object]] = {
    "both": {
        "Incoming": [{"Port": "8080"}, {"Port": "2000"}],
        "Outgoing": [{"Addr": "service.ns", "Port": "8080"}, {"Addr": "10.0.0.7", "Port": "9"}],
    },
    "in": {"Incoming": [{"Port": "2000"}]},
    "in again": {"Incoming": [{"Port": "2000"}]},
    "out": {"Outgoing": [{"Addr": "db.ns", "Port": "5432"}]},
    "nothing": {},
    "own": {"Incoming": [showing("2000", "own")]},
    "shared": {"Incoming": [showing("2000", "shared")]},
    "uploaded": {"Incoming": [showing("2000", "uploaded")]},
    "unset": {"Incoming": [showing("2000", "unset")]},
}
TYPES: dict[str, list[str]] = {name: [name] for name in TAGS} | {
    "plain": [],
    "alike": ["in", "in again"],
    "several": ["in", "out", "both"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    parameters = {"Env": {TTLS: "the manifest's own"}}
    marbles = {name: {"Package": "app", "TLS": tags, "Parameters": parameters} for name, tags in TYPES.items()}
    key = openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", data=ALICE.key)
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(owned(Secrets=SECRETS, Marbles=marbles, TLS=TAGS))
        upload = {"uploaded": {"Cert": b64(ALICE.der), "Private": b64(key)}}
        assert (await made.post("/secrets", upload, ALICE)).status == 200
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def got(town: MarbleDeployment) -> dict[str, Parameters]:
    """What a Marble of each type received."""
    return {name: await town.activate(name) for name in TYPES if name != "unset"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with waiting(machine, tmp_path_factory.mktemp("refusing")) as made:
        yield made


def ttls(parameters: Parameters) -> Any:
    return json.loads(parameters.env[TTLS])["tls"]


# --- the text


async def test_a_marble_without_tags_has_none(got: dict[str, Parameters]) -> None:
    assert got["plain"].env[TTLS] == b"the manifest's own"


async def test_with_tags_it_overwrites_the_manifests_variable(got: dict[str, Parameters]) -> None:
    assert got["nothing"].env[TTLS] == b'{"tls":{"Incoming":{},"Outgoing":{}}}'


async def test_its_beginning_is_what_clients_look_for(got: dict[str, Parameters]) -> None:
    prefix = b'{"tls":{"Incoming":{"*:2000":{"cacrt":"-----BEGIN CERTIFICATE-----'
    assert got["both"].env[TTLS].startswith(prefix)
    assert got["in"].env[TTLS].startswith(prefix)


@pytest.mark.parametrize("name", ["both", "several", "own", "out"])
async def test_keys_are_sorted_and_nothing_is_blank(got: dict[str, Parameters], name: str) -> None:
    text = got[name].env[TTLS].decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("name", ["in", "out", "nothing"])
async def test_both_directions_are_always_there(got: dict[str, Parameters], name: str) -> None:
    assert list(ttls(got[name])) == ["Incoming", "Outgoing"]


async def test_incoming_is_by_port_on_every_address(got: dict[str, Parameters]) -> None:
    assert list(ttls(got["both"])["Incoming"]) == ["*:2000", "*:8080"]


async def test_outgoing_is_by_address_and_port(got: dict[str, Parameters]) -> None:
    assert list(ttls(got["both"])["Outgoing"]) == ["10.0.0.7:9", "service.ns:8080"]


# --- credentials


async def test_incoming_has_authority_certificate_key_and_asks_for_certificates(got: dict[str, Parameters]) -> None:
    entry = ttls(got["both"])["Incoming"]["*:8080"]
    assert list(entry) == ["cacrt", "clicrt", "clientAuth", "clikey"]
    assert entry["clientAuth"] is True


async def test_outgoing_has_the_same_without_asking(got: dict[str, Parameters]) -> None:
    assert list(ttls(got["both"])["Outgoing"]["service.ns:8080"]) == ["cacrt", "clicrt", "clikey"]


@pytest.mark.parametrize(("direction", "key"), [("Incoming", "*:8080"), ("Outgoing", "service.ns:8080")])
async def test_they_are_the_marble_root_the_leaf_alone_and_its_key(
    got: dict[str, Parameters], direction: str, key: str
) -> None:
    env, entry = got["both"].env, ttls(got["both"])[direction][key]
    assert entry["cacrt"].encode() == env[ROOT_CA]
    assert entry["clicrt"].encode() == certificates(env[CHAIN])[0]
    assert entry["clikey"].encode() == env[PRIVATE_KEY]


@pytest.mark.parametrize("secret", ["own", "shared"])
async def test_a_port_with_cert_shows_the_secret_and_asks_for_none(got: dict[str, Parameters], secret: str) -> None:
    env, entry = got[secret].env, ttls(got[secret])["Incoming"]["*:2000"]
    assert entry["clientAuth"] is False
    assert entry["cacrt"].encode() == env[ROOT_CA]
    assert entry["clicrt"].encode() != certificates(env[CHAIN])[0]
    assert entry["clikey"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert public_key(entry["clikey"].encode(), "pkey") == public_key(entry["clicrt"].encode())
    assert verifies(entry["clicrt"].encode(), env[ROOT_CA], "-x509_strict", "-verify_hostname", "localhost")


async def test_a_certificate_that_a_user_uploaded_is_shown_as_it_is(got: dict[str, Parameters]) -> None:
    entry = ttls(got["uploaded"])["Incoming"]["*:2000"]
    assert entry["clicrt"].encode() == ALICE.certificate
    assert public_key(entry["clikey"].encode(), "pkey") == public_key(ALICE.certificate)


async def test_one_that_is_not_uploaded_yet_fails_the_activation(town: MarbleDeployment) -> None:
    refusal = await town.refusal("unset")
    assert refusal.status is Status.INTERNAL
    assert refusal.message.startswith("creating TTLS config: ")


# --- several tags


async def test_the_tags_of_a_marble_add_up(got: dict[str, Parameters]) -> None:
    config = ttls(got["several"])
    assert list(config["Incoming"]) == ["*:2000", "*:8080"]
    assert list(config["Outgoing"]) == ["10.0.0.7:9", "db.ns:5432", "service.ns:8080"]


async def test_what_two_tags_say_alike_is_said_once(got: dict[str, Parameters]) -> None:
    assert list(ttls(got["alike"])["Incoming"]) == ["*:2000"]


@pytest.mark.parametrize("tags", [["in", "own"], ["own", "in"]])
async def test_two_tags_that_disagree_about_a_port_are_refused_by_name(
    refusing: MarbleDeployment, tags: list[str]
) -> None:
    """In MarbleRun the later one counts, so that a port may silently stop asking for certificates."""
    raw = manifest(Secrets=SECRETS, TLS=TAGS, Marbles={"web": {"Package": "app", "TLS": tags}})
    text = f"port 2000 of Marble web is defined differently by {tags[0]} (at TLS.{tags[1]}.Incoming[0])"
    assert text in await refusing.manifest_refused(raw)


# --- what is refused with the manifest


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ({"Incoming": [{}]}, "manifest misses Port in TLS.Incoming.t"),
        ({"Outgoing": [{"Addr": "a"}]}, "manifest misses Port in TLS.Outgoing.t"),
        ({"Outgoing": [{"Port": "1"}]}, "manifest misses Addr in TLS.Outgoing.t"),
        ({"Incoming": [showing("1", "other")]}, "TLS.Incoming.t references undefined secret other"),
        (
            {"Incoming": [{"Port": "1", "Cert": "own"}]},
            "TLS.Incoming.t defines Cert but does not disable client authentication",
        ),
        ({"Incoming": [{"Port": "1", "DisableClientAuth": True}]}, "TLS.Incoming.t disables client authentication"),
        # MarbleRun fills in templates here too; a route of ours must be known before there is an instance.
        ({"Outgoing": [{"Addr": "{{.Secrets.own.Type}}", "Port": "1"}]}, "invalid address '{{.Secrets.own.Type}}'"),
    ],
)
async def test_a_tag_that_means_nothing_is_refused(
    refusing: MarbleDeployment, tag: dict[str, object], text: str
) -> None:
    assert text in await refusing.manifest_refused(manifest(Secrets=SECRETS, TLS={"t": tag}))
