# SPDX-License-Identifier: Apache-2.0
"""`--insecure-no-attestation`, the mode for Marbles in MarbleRun's own simulation: a process with nothing in its
environment but `EDG_*`, and a Marble of openssl and curl that sends no quote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.bare_marble import BareMarble, call, entries, field, fields
from tests.kit.client_api import curl
from tests.kit.coordinator import manifest
from tests.kit.coordinator_process import CoordinatorProcess, coordinator
from tests.kit.openssl_judge import certificates, s_client, verifies, x509

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ENV = {"EDG_COORDINATOR_INSECURE_NO_ATTESTATION": "1"}


@dataclass
class Running:
    process: CoordinatorProcess
    marble: BareMarble

    async def get(self, path: str) -> Any:
        return (await curl(f"https://127.0.0.1:{self.process.port('client')}{path}")).data


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    home = tmp_path_factory.mktemp("insecure")
    async with coordinator(None, env=ENV, state=home / "state") as process:
        url = f"https://127.0.0.1:{process.port('client')}/manifest"
        assert (await curl(url, body=manifest())).status == 200
        yield Running(process, BareMarble.make(home))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def env(running: Running) -> dict[bytes, bytes]:
    """What a Marble without a quote is given."""
    message = field(2, running.marble.csr) + field(3, "web") + field(4, UUID)
    answer = await call(running.process.port("mesh"), running.marble.pem, message)
    ((_, parameters),) = fields(answer.reply)
    return entries(parameters, 2)


async def test_a_marble_with_an_empty_quote_is_given_an_identity(env: dict[bytes, bytes]) -> None:
    leaf = certificates(env[b"MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])[0]
    assert x509(leaf, "-subject") == f"subject=CN = {UUID}"
    assert verifies(leaf, env[b"MARBLE_PREDEFINED_ROOT_CA"])


async def test_its_certificate_says_that_nothing_was_attested(env: dict[bytes, bytes]) -> None:
    chain = env[b"MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"]
    assert '"insecure":true' in "".join(x509(chain, "-text").split())


@pytest.mark.parametrize(("path", "name"), [("/api/v2/quote", "quote"), ("/quote", "Quote")])
async def test_the_coordinators_own_quote_is_null(running: Running, path: str, name: str) -> None:
    assert (await running.get(path))[name] is None


async def test_its_status_says_so(running: Running) -> None:
    assert (await running.get("/api/v2/status"))["insecure"] is True


async def test_every_line_of_its_log_says_so(running: Running) -> None:
    lines = [line for line in running.process.lines if "level" in line]
    assert lines
    assert all(line["insecure"] is True for line in lines)
    assert any("INSECURE: NO ATTESTATION AT ALL" in line["event"] for line in lines)


async def test_its_ports_are_those_of_any_other_coordinator(running: Running, env: dict[bytes, bytes]) -> None:
    client = await s_client(running.process.port("client"))
    assert client.presented == [env[b"MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"]]
    flags = ["-alpn", "h2", "-cert", str(running.marble.pem)]
    assert (await s_client(running.process.port("mesh"), *flags)).presented == [env[b"MARBLE_PREDEFINED_ROOT_CA"]]
    assert not (await s_client(running.process.port("mesh"), "-alpn", "h2")).ok
