# SPDX-License-Identifier: Apache-2.0
"""Secrets as Marbles and users meet them: what is derived and how, what is random, what is shared, what is uploaded.

Marbles ask over the Marble API, users by curl; certificates that secrets hold are judged by OpenSSL.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, web
from tests.kit.openssl_judge import openssl
from tests.kit.users import user
from xds_server.coordinator import fresh_records

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ROOT_SECRET = b"\x42" * 32
# Of the protocol's description, computed with another implementation of HKDF.
BOUND = "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"
UNBOUND = "43356dced0202b9372a5c94b08d9559e6a80d88c2afae03e618e344a93ceff2f"
ALICE = user("alice")


def symmetric(bits: int, **members: object) -> dict[str, object]:
    return {"Type": "symmetric-key", "Size": bits} | members


def hexed(*names: str) -> dict[str, str]:
    """An environment with these secrets and their previous generation in hexadecimal digits."""
    env = {name: f'{{{{ hex (index .Secrets "{name}") }}}}' for name in names}
    return env | {f"previous {name}": f'{{{{ hex (index .Previous.Secrets "{name}") }}}}' for name in names}


def hkdf(root_secret: bytes, salt: str, info: str, size: int) -> str:
    """HKDF-SHA256 by OpenSSL, hexadecimal."""
    options = {"digest": "SHA256", "hexkey": root_secret.hex(), "hexsalt": salt.encode().hex()}
    if info:
        options["hexinfo"] = info.encode().hex()
    flags = [word for name, value in options.items() for word in ("-kdfopt", f"{name}:{value}")]
    return openssl("kdf", "-keylen", str(size), *flags, "-binary", "HKDF").hex()


# --- keys derived for one Marble


SIZES = {"byte": 8, "mykey": 256, "odd": 136, "long": 4096, "longest": 65280}
DERIVING = {
    "Secrets": {name: symmetric(bits) for name, bits in SIZES.items()} | {"two": symmetric(256)},
    "Marbles": {
        name: {"Package": "app", "Parameters": {"Env": hexed(*SIZES, "two")}, "DisableSecretBinding": unbound}
        for name, unbound in (("backend", False), ("other", False), ("unbound", True), ("unbound too", True))
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    """Whose root secret is known."""
    fresh = fresh_records(["localhost"], [], datetime.now(UTC))
    records = replace(fresh, root_secret=ROOT_SECRET, previous_root_secret=ROOT_SECRET)
    async with deployed(Bench.make(machine, records=records), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(manifest(**DERIVING))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(town: MarbleDeployment) -> Parameters:
    return await town.activate("backend", UUID)


async def test_the_vector_with_the_marbles_type_for_info(backend: Parameters) -> None:
    assert backend.env["mykey"].decode() == BOUND == hkdf(ROOT_SECRET, UUID + "mykey", "backend", 32)


async def test_the_vector_without_secret_binding(town: MarbleDeployment) -> None:
    unbound = await town.activate("unbound", UUID)
    assert unbound.env["mykey"].decode() == UNBOUND == hkdf(ROOT_SECRET, UUID + "mykey", "", 32)


@pytest.mark.parametrize(("name", "bits"), SIZES.items())
async def test_a_key_has_the_size_that_is_asked_for(backend: Parameters, name: str, bits: int) -> None:
    assert backend.env[name].decode() == hkdf(ROOT_SECRET, UUID + name, "backend", bits // 8)


async def test_the_same_uuid_type_and_name_give_the_same_key_after_a_restart(
    town: MarbleDeployment, backend: Parameters
) -> None:
    again = await town.activate("backend", UUID)
    assert {name: again.env[name] for name in SIZES} == {name: backend.env[name] for name in SIZES}


@pytest.mark.parametrize("form", [UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}"])
async def test_the_salt_is_the_lower_case_uuid_however_it_is_sent(
    town: MarbleDeployment, backend: Parameters, form: str
) -> None:
    assert (await town.activate("backend", form)).env["mykey"] == backend.env["mykey"]


async def test_another_uuid_gives_another_key(town: MarbleDeployment, backend: Parameters) -> None:
    assert (await town.activate("backend", OTHER)).env["mykey"] != backend.env["mykey"]


async def test_another_name_gives_another_key(backend: Parameters) -> None:
    assert backend.env["two"] != backend.env["mykey"]


async def test_another_type_gives_another_key(town: MarbleDeployment, backend: Parameters) -> None:
    assert (await town.activate("other", UUID)).env["mykey"] != backend.env["mykey"]


async def test_without_binding_another_type_gives_the_same_key(town: MarbleDeployment) -> None:
    one, two = await town.activate("unbound", UUID), await town.activate("unbound too", UUID)
    assert one.env["mykey"] == two.env["mykey"]


async def test_the_first_generation_is_its_own_previous_one(backend: Parameters) -> None:
    assert all(backend.env[f"previous {name}"] == backend.env[name] for name in SIZES)


async def test_a_restarted_coordinator_derives_the_same_keys(machine: Path, tmp_path: Path) -> None:
    first = Bench.make(machine)
    raw = manifest(Secrets={"k": symmetric(256)}, Marbles=web(Env=hexed("k")))
    async with deployed(first, tmp_path) as town:
        await town.set_manifest(raw)
        before = (await town.activate()).env["k"]
    async with deployed(first.restarted(machine), tmp_path) as town:
        assert (await town.activate()).env["k"] == before


@pytest.mark.parametrize("rotate", [True, False])
async def test_the_previous_generation_is_derived_from_the_previous_root_secret(
    machine: Path, tmp_path: Path, rotate: bool
) -> None:
    members: dict[str, object] = {"Secrets": {"k": symmetric(256)}, "Marbles": web(Env=hexed("k"))}
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**members))
        before = (await town.activate()).env["k"]
        await town.update(owned(**members, Config={"RotateRootSecret": rotate}), ALICE)
        after = (await town.activate()).env
    assert after["previous k"] == before
    assert (after["k"] == before) is not rotate


# --- what is generated once


SHARED: dict[str, dict[str, object]] = {
    "key": symmetric(128, Shared=True),
    "byte": symmetric(8, Shared=True),
    "kilobyte": symmetric(8192, Shared=True),
    "cert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True},
}
OWN: dict[str, dict[str, object]] = {"own-key": symmetric(128), "own-cert": {"Type": "cert-ecdsa", "Size": 256}}
MAKING: dict[str, object] = {
    "Secrets": SHARED | OWN,
    "Marbles": {name: {"Package": "app", "Parameters": {"Env": hexed(*SHARED, *OWN)}} for name in ("web", "api")},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def making(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("making")) as made:
        await made.set_manifest(owned(**MAKING))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(making: MarbleDeployment) -> list[Parameters]:
    """An instance, the same again, and one of another type and UUID."""
    return [await making.activate(*who) for who in (("web", UUID), ("web", UUID), ("api", OTHER))]


@pytest.mark.parametrize(("name", "size"), [("key", 16), ("byte", 1), ("kilobyte", 1024)])
async def test_a_shared_key_has_size_over_8_bytes(three: list[Parameters], name: str, size: int) -> None:
    assert len(bytes.fromhex(three[0].env[name].decode())) == size


@pytest.mark.parametrize("name", SHARED)
async def test_a_shared_secret_is_the_same_for_everybody(three: list[Parameters], name: str) -> None:
    assert len({parameters.env[name] for parameters in three}) == 1


async def test_a_shared_key_is_random(machine: Path, tmp_path: Path, three: list[Parameters]) -> None:
    """Another deployment on the same machine with the same manifest has another one."""
    async with deployed(Bench.make(machine), tmp_path) as other:
        await other.set_manifest(owned(**MAKING))
        assert (await other.activate("web", UUID)).env["key"] != three[0].env["key"]


async def test_users_read_the_shared_secrets_that_marbles_get(
    making: MarbleDeployment, three: list[Parameters]
) -> None:
    read = (await making.get("/api/v2/secrets?s=key&s=cert", ALICE)).data["secrets"]
    assert base64.b64decode(read["key"]["Private"]).hex().encode() == three[0].env["key"]
    assert base64.b64decode(read["cert"]["Public"]).hex().encode() == three[0].env["cert"]


async def test_a_key_of_a_marble_is_the_instances_alone(three: list[Parameters]) -> None:
    one, again, other = (parameters.env["own-key"] for parameters in three)
    assert one == again != other


async def test_a_certificate_of_a_marble_is_new_at_every_activation(three: list[Parameters]) -> None:
    assert len({parameters.env["own-cert"] for parameters in three}) == 3


async def test_so_is_the_one_of_the_previous_generation(three: list[Parameters]) -> None:
    made = {parameters.env[name] for parameters in three for name in ("own-cert", "previous own-cert")}
    assert len(made) == 6


async def test_a_shared_certificate_is_new_after_a_package_update(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**MAKING))
        before = (await town.activate()).env
        await town.update(b'{"Packages":{"app":{"SecurityVersion":3}}}', ALICE)
        after = (await town.activate()).env
    assert (before["cert"] != after["cert"], before["key"] == after["key"]) == (True, True)


async def test_a_shared_certificate_is_new_after_a_whole_update(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**MAKING))
        before = (await town.activate()).env
        await town.update(owned(**MAKING, Config={"FeatureGates": []}), ALICE)
        after = (await town.activate()).env
    assert (before["cert"] != after["cert"], before["key"] == after["key"]) == (True, True)
    assert after["previous cert"] == before["cert"]
