# SPDX-License-Identifier: Apache-2.0
"""`marblemesh xds …` and the same from Python, about a real xDS port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from marblemesh.client import Client, NoSuchCall, RequestRefused, identity_from_pem
from sds.resources import CLUSTER, LISTENER, SECRET
from tests.kit.operator import Operator, operating
from tests.kit.pki import odd_leaf, other_ca
from tests.kit.users import user
from tests.kit.xds_port import Place, connected, opened
from xds_server import mesh_clients


@pytest.fixture
async def operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    async with operating(tmp_path, capsys, monkeypatch) as somebody:
        yield somebody


@asynccontextmanager
async def two_clients(operator: Operator) -> AsyncIterator[tuple[Place, str, str]]:
    """A worker with its listener and secret, which a second one has rejected and asks for what does not exist."""
    async with opened() as place:
        operator.fake.xds.view = place.server
        web, voting = place.town.activate("web"), place.town.activate("voting")
        async with connected(place.of(web.identity)) as good, connected(place.of(voting.identity)) as bad:
            good.client.subscribe(LISTENER, ["inbound|8080"])
            await good.hear()
            good.client.subscribe(SECRET, ["default"])
            await good.hear()
            await bad.send()
            bad.client.subscribe(SECRET, ["default"])
            await bad.hear(nack=f"no: {voting.identity.key.pem.decode()}")
            bad.client.subscribe(CLUSTER, ["nobody"])
            await bad.hear()
            good.client.subscribe(CLUSTER, ["app|8080"])
            await good.hear()  # so that the answers before have arrived
            operator.capsys.readouterr()  # the server's log
            yield place, f"web/{web.uuid}", f"voting/{voting.uuid}"


async def test_the_status_is_a_table_with_those_in_trouble_first(operator: Operator) -> None:
    async with two_clients(operator) as (_, good, bad):
        result = await operator.as_user("xds", "status", operator.fake.address)
        head, *rows = [line.split() for line in result.out.splitlines()]
        assert (result.status, head) == (0, ["CLIENT", "TYPE", "STATE", "SYNCED", "LAST", "PUSH", "WHY"])
        cluster, secret = rows[:2]
        assert cluster[:4] == [bad, "cluster", "not", "found"]
        assert secret[:4] == [bad, "secret", "rejected", "0/1"]
        assert secret[-3:] == ["default:", "no:", "[redacted]"]
        assert {tuple(row[:4]) for row in rows if row[0] == good} >= {
            (good, "listener", "synced", "1/1"),
            (good, "secret", "synced", "1/1"),
        }


async def test_programs_get_the_status_as_json_and_clients_can_be_named(operator: Operator) -> None:
    async with two_clients(operator) as (_, good, _bad):
        result = await operator.as_user("xds", "status", operator.fake.address, "--client", "web", "-o", "json")
        found = json.loads(result.out)
        assert (found["total"], [stream["client"] for stream in found["streams"]]) == (1, [good])
        (secret,) = [kind for kind in found["streams"][0]["types"] if kind["type"] == "secret"]
        assert secret["lastPush"] is not None
        assert (secret["state"], secret["notFound"]) == ("synced", [])


async def test_the_status_names_first_what_is_withheld_and_why(operator: Operator) -> None:
    async with two_clients(operator) as (place, *_):
        web = next(marble for marble in place.town.mesh.marbles if marble.marble_type == "web")
        wrong = odd_leaf(other_ca(), uris=[str(web.identity.in_use().spiffe_id)])
        place.town.mesh.replace_identities({("web", web.uuid): wrong})
        place.town.mesh.secrets(mesh_clients.Client(mesh_clients.Role.MARBLE, "web", web.uuid))
        operator.capsys.readouterr()  # the server's log
        text = await operator.as_user("xds", "status", operator.fake.address)
        assert text.out.splitlines()[1].split()[:4] == ["web", "secret", "withheld", "-"]
        assert "root that is not in the bundle that its holder gets; the last good one stays" in text.out
        found = json.loads((await operator.as_user("xds", "status", operator.fake.address, "-o", "json")).out)
        assert {(row["secret"], row["lastGoodStays"], row["owners"]) for row in found["withheld"]} >= {
            ("default", True, 1)
        }


async def test_the_dump_lists_resources_and_as_json_their_content_but_no_secret(operator: Operator) -> None:
    async with two_clients(operator) as (_, good, bad):
        text = await operator.as_user("xds", "dump", operator.fake.address)
        rows = [line.split() for line in text.out.splitlines()]
        assert [good, "listener", "inbound|8080", "synced"] in [row[:4] for row in rows]
        assert [bad, "secret", "default", "rejected"] in [row[:4] for row in rows]
        whole = await operator.as_user("xds", "dump", operator.fake.address, "-o", "json")
        resources = {
            (stream["client"], kind["type"], resource["name"]): resource
            for stream in json.loads(whole.out)["streams"]
            for kind in stream["types"]
            for resource in kind["resources"]
        }
        assert resources[good, "listener", "inbound|8080"]["content"]["address"]["socket_address"]["port_value"] == 8080
        assert "content" not in resources[good, "secret", "default"]
        assert "BEGIN" not in whole.out + text.out


async def test_what_was_cut_is_said(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds_server.client_api_xds.MAX_STREAMS", 1)
    async with two_clients(operator):
        for verb in ("status", "dump"):
            result = await operator.as_user("xds", verb, operator.fake.address)
            assert result.line == "1 of 2 streams shown: name the clients that you want to see with --client"


async def test_who_is_no_user_is_told_the_way_out(operator: Operator) -> None:
    async with opened() as place:
        operator.fake.xds.view = place.server
        result = await operator.as_user("xds", "status", operator.fake.address, name="mallory")
    assert result.status == 1
    assert "connect with the certificate and the key of a user whom the manifest names under Users" in result.line


async def test_from_python_it_is_a_call_with_typed_values(operator: Operator) -> None:
    who = user("alice")
    fake = operator.fake
    client = Client(fake.address, root=fake.ca.root, identity=identity_from_pem(who.certificate, who.key))
    with pytest.raises(NoSuchCall):
        await client.xds_status()
    async with two_clients(operator) as (_, _good, bad):
        again = Client(fake.address, root=fake.ca.root, identity=identity_from_pem(who.certificate, who.key))
        status = await again.xds_status(["voting"])
        assert (status.total, status.streams[0].client) == (1, bad)
        rejected = next(kind for kind in status.streams[0].types if kind.type == "secret")
        assert (rejected.state, rejected.rejected, rejected.reason) == ("rejected", ("default",), "no: [redacted]")
        assert rejected.last_push is not None
        assert (await again.xds_dump()).total == 2
        with pytest.raises(RequestRefused, match="authorizing user"):
            await Client(fake.address, root=fake.ca.root).xds_dump()
