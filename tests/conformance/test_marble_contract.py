# SPDX-License-Identifier: Apache-2.0
"""The Marble API's contract: one unary gRPC method, its messages by field number, its limits.

The client is curl with bytes made by hand (or grpclib, as a carrier of bytes); nobody's protobuf library helps it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.bare_marble import ACTIVATE, BareMarble, GrpcAnswer, call, entries, field, fields, unary
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_deployment import CHAIN, COORDINATOR_ROOT_CA, PRIVATE_KEY, ROOT_CA, MarbleDeployment, deployed
from tests.kit.openssl_judge import x509

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
MIB = 1024 * 1024
UNIMPLEMENTED, RESOURCE_EXHAUSTED = 12, 8
INTERNAL = "13"
PARAMETERS = {
    "Files": {"/etc/text": "a text", "/etc/bytes": {"Data": "AAH/", "Encoding": "base64"}, "/etc/empty": ""},
    "Env": {"NAME": "value", "BYTES": {"Data": "ff01", "Encoding": "hex"}},
    "Argv": ["./web", "--name", "", "ü"],
}
LONG = '{{ range 2100 }}{{ printf "%1000d" 1 }}{{ end }}'
GROWING = {"Files": {"/f": LONG, "/g": LONG}}
NEARLY = {"Files": {"/f": '{{ range 4000 }}{{ printf "%1000d" 1 }}{{ end }}'}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    """Without attestation, so that a Marble needs nothing but openssl and curl."""
    types = {"web": PARAMETERS, "growing": GROWING, "nearly": NEARLY, "bare": {}}
    marbles = {name: {"Package": "app", "Parameters": parameters} for name, parameters in types.items()}
    async with deployed(Bench.make(machine, insecure=True), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(manifest(Marbles=marbles))
        yield made


@pytest.fixture(scope="module")
def marble(tmp_path_factory: pytest.TempPathFactory) -> BareMarble:
    return BareMarble.make(tmp_path_factory.mktemp("marble"))


def request(marble: BareMarble, marble_type: str = "web", quote: bytes = b"") -> bytes:
    return field(1, quote) + field(2, marble.csr) + field(3, marble_type) + field(4, UUID)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answer(town: MarbleDeployment, marble: BareMarble) -> GrpcAnswer:
    """To the request of a Marble of type `web`."""
    return await call(town.mesh, marble.pem, request(marble))


def parameters(answer: GrpcAnswer) -> bytes:
    ((number, message),) = fields(answer.reply)
    assert number == 1
    return message


# --- the messages


async def test_the_method_is_activate_of_service_marble_in_package_rpc(answer: GrpcAnswer) -> None:
    assert ACTIVATE == "/rpc.Marble/Activate"
    assert (answer.http, answer.status, answer.fields["content-type"]) == ("200", "0", "application/grpc")


async def test_the_answer_holds_parameters_in_field_1(answer: GrpcAnswer) -> None:
    assert [number for number, _ in fields(answer.reply)] == [1]


async def test_files_are_a_map_from_string_to_bytes_in_field_1(answer: GrpcAnswer) -> None:
    files = {b"/etc/text": b"a text", b"/etc/bytes": b"\x00\x01\xff", b"/etc/empty": b""}
    assert entries(parameters(answer), 1) == files


async def test_the_environment_is_a_map_from_string_to_bytes_in_field_2(answer: GrpcAnswer) -> None:
    env = entries(parameters(answer), 2)
    assert (env.pop(b"NAME"), env.pop(b"BYTES")) == (b"value", b"\xff\x01")
    assert set(env) == {name.encode() for name in (ROOT_CA, CHAIN, PRIVATE_KEY, COORDINATOR_ROOT_CA)}


async def test_arguments_are_repeated_strings_in_field_3(answer: GrpcAnswer) -> None:
    argv = [content.decode() for number, content in fields(parameters(answer)) if number == 3]
    assert argv == ["./web", "--name", "", "ü"]


async def test_what_the_manifest_leaves_out_is_left_out(town: MarbleDeployment, marble: BareMarble) -> None:
    bare = parameters(await call(town.mesh, marble.pem, request(marble, "bare")))
    assert {number for number, _ in fields(bare)} == {2}


@pytest.mark.parametrize(
    ("number", "name"), [(1, "Quote"), (2, "CSR"), (3, "MarbleType"), (4, "UUID")], ids=lambda value: str(value)
)
async def test_the_request_has_its_fields_under_their_numbers(
    town: MarbleDeployment, marble: BareMarble, number: int, name: str
) -> None:
    """Each is taken away in turn: the text says which one is missed."""
    message = b"".join(field(n, content) for n, content in fields(request(marble, quote=b"q")) if n != number)
    got = await call(town.mesh, marble.pem, message)
    expected = {
        "Quote": ("0", ""),  # without attestation nobody misses it
        "CSR": (INTERNAL, "generating marble authentication secrets: parsing CSR: "),
        "MarbleType": ("7", "marble verification failed: unknown marble type requested"),
        "UUID": ("3", "invalid UUID: "),
    }
    status, text = expected[name]
    assert got.status == status
    assert got.message.startswith(text)


async def test_unknown_fields_are_ignored(town: MarbleDeployment, marble: BareMarble) -> None:
    got = await call(town.mesh, marble.pem, request(marble) + field(15, b"from a later version"))
    assert got.status == "0"


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", field(3, b"\xff\xfe")], ids=["key", "length", "not UTF-8"])
async def test_bytes_that_are_no_request_are_an_internal_error(
    town: MarbleDeployment, marble: BareMarble, message: bytes
) -> None:
    got = await call(town.mesh, marble.pem, message)
    assert (got.http, got.status) == ("200", INTERNAL)


async def test_a_marble_made_by_openssl_and_curl_alone_has_an_identity(
    town: MarbleDeployment, answer: GrpcAnswer
) -> None:
    env = entries(parameters(answer), 2)
    assert env[ROOT_CA.encode()] == town.marble_root
    assert UUID in x509(env[CHAIN.encode()], "-subject")


# --- what is not there


@pytest.mark.parametrize(
    "path",
    [
        "/rpc.Marble/Deactivate",
        "/rpc.Marble/",
        "/rpc.Other/Activate",
        "/Marble/Activate",
        "/rpc.Marble/activate",
        "/rpc.Marble/Activate/",
    ],
)
async def test_unknown_methods_are_unimplemented(town: MarbleDeployment, marble: BareMarble, path: str) -> None:
    assert (await unary(town.mesh, marble.pem, path, request(marble)))[0] == UNIMPLEMENTED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_there_is_no_reflection(town: MarbleDeployment, marble: BareMarble, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    assert (await unary(town.mesh, marble.pem, path, field(7, b"")))[0] == UNIMPLEMENTED


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_there_is_no_health_service(town: MarbleDeployment, marble: BareMarble, method: str) -> None:
    assert (await unary(town.mesh, marble.pem, f"/grpc.health.v1.Health/{method}", b""))[0] == UNIMPLEMENTED


async def test_there_is_no_metadata_but_grpcs_own(
    town: MarbleDeployment, marble: BareMarble, answer: GrpcAnswer
) -> None:
    assert set(answer.fields) == {"content-type", "grpc-status"}
    refused = await call(town.mesh, marble.pem, request(marble, "other"))
    assert set(refused.fields) == {"content-type", "grpc-status", "grpc-message"}


async def test_metadata_of_a_client_is_ignored(town: MarbleDeployment, marble: BareMarble) -> None:
    got = await call(town.mesh, marble.pem, request(marble), fields=["authorization: Bearer x", "x-thing-bin: AAE="])
    assert got.status == "0"


# --- limits


async def test_a_request_of_4_mib_is_taken(town: MarbleDeployment, marble: BareMarble) -> None:
    room = 4 * MIB - len(request(marble)) - 3  # the quote's length takes three bytes more than an empty one's
    message = request(marble, quote=bytes(room))
    assert len(message) == 4 * MIB
    assert (await call(town.mesh, marble.pem, message)).status == "0"


async def test_a_byte_more_is_resource_exhausted(town: MarbleDeployment, marble: BareMarble) -> None:
    room = 4 * MIB - len(request(marble)) - 2
    status, _ = await unary(town.mesh, marble.pem, ACTIVATE, request(marble, quote=bytes(room)))
    assert status == RESOURCE_EXHAUSTED


async def test_an_answer_that_clients_take_is_sent_whole(town: MarbleDeployment, marble: BareMarble) -> None:
    files = entries(parameters(await call(town.mesh, marble.pem, request(marble, "nearly"))), 1)
    assert len(files[b"/f"]) == 4_000_000


async def test_an_answer_that_no_client_would_take_is_not_sent(town: MarbleDeployment, marble: BareMarble) -> None:
    got = await call(town.mesh, marble.pem, request(marble, "growing"))
    assert got.status == INTERNAL
    assert got.message.endswith(f"clients accept {4 * MIB}")


async def test_a_call_may_be_repeated_on_any_connection(town: MarbleDeployment, marble: BareMarble) -> None:
    """There is no session: the same request, another connection, another identity for the same instance."""
    first, second = [entries(parameters(await call(town.mesh, marble.pem, request(marble))), 2) for _ in range(2)]
    assert x509(first[CHAIN.encode()], "-serial") != x509(second[CHAIN.encode()], "-serial")
    assert x509(first[CHAIN.encode()], "-subject") == x509(second[CHAIN.encode()], "-subject")
