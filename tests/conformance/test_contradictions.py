# SPDX-License-Identifier: Apache-2.0
"""Where MarbleRun's documentation and its Coordinator contradict each other, clients were written for the Coordinator:
so does ours. And where its Coordinator is known to be fragile, ours is not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.client_api import curl
from tests.kit.coordinator import Bench
from tests.kit.deployment import b64
from tests.kit.marble_deployment import CHAIN, MarbleDeployment, deployed, owned, web
from tests.kit.openssl_judge import certificates, s_client, x509
from tests.kit.users import public_pem, recovery_key, user

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = user("alice")
MEMBERS: dict[str, object] = {
    "Secrets": {"mine": {"Type": "plain", "UserDefined": True}, "c": {"Type": "cert-ecdsa", "Size": 256}},
    "Marbles": web(Env={"C": "{{ pem .Secrets.c.Cert }}"}),
    "Config": {"FeatureGates": ["SignQuoteEndpoint"]},
    "RecoveryKeys": {"owner": public_pem(recovery_key().public_key()).decode()},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def first(town: MarbleDeployment) -> dict[str, Any]:
    """What is answered before the manifest, and to it."""
    status = (await town.get("/api/v2/status")).data
    return {"status": status, "set": (await town.post("/manifest", owned(**MEMBERS))).data}


# --- what the documentation says otherwise


async def test_accepting_a_manifest_is_state_2_and_accepting_marbles_3(
    town: MarbleDeployment, first: dict[str, Any]
) -> None:
    assert first["status"]["code"] == 2
    assert (await town.get("/api/v2/status")).data["code"] == 3


async def test_the_state_s_member_is_called_code(first: dict[str, Any]) -> None:
    assert {"code", "message"} <= first["status"].keys()
    assert "status" not in first["status"]


async def test_version_1_answers_a_manifest_with_recovery_secrets(first: dict[str, Any]) -> None:
    assert list(first["set"]) == ["RecoverySecrets"]
    assert list(first["set"]["RecoverySecrets"]) == ["owner"]


async def test_secrets_have_capitalised_members(town: MarbleDeployment) -> None:
    shown = (await town.get("/api/v2/secrets?s=mine", ALICE)).data["secrets"]["mine"]
    assert list(shown) == ["Type", "Size", "Shared", "UserDefined", "Cert", "ValidFor", "Private", "Public"]


async def test_an_upload_under_public_is_none(town: MarbleDeployment) -> None:
    await town.post("/secrets", {"mine": {"public": b64(b"value")}}, ALICE)
    assert (await town.get("/secrets?s=mine", ALICE)).data["mine"]["Public"] is None
    assert (await town.post("/secrets", {"mine": {"Key": b64(b"value")}}, ALICE)).status == 200
    assert (await town.get("/secrets?s=mine", ALICE)).data["mine"]["Public"] == b64(b"value")


async def test_a_signed_quote_has_a_verification_signature(town: MarbleDeployment) -> None:
    answer = (await town.post("/api/v2/sign-quote", {"sgxQuote": b64(town.quote())})).data
    assert list(answer) == ["tcbStatus", "verificationSignature"]


async def test_version_1_shows_the_manifest_with_capitalised_members(town: MarbleDeployment) -> None:
    shown = (await town.get("/manifest")).data
    assert list(shown) == ["ManifestSignatureRootECDSA", "ManifestSignature", "Manifest"]
    assert shown["ManifestSignature"] == hashlib.sha256(owned(**MEMBERS)).hexdigest()


async def test_the_client_api_s_port_presents_the_root_alone(town: MarbleDeployment) -> None:
    assert (await s_client(town.client)).presented == [town.root]


async def test_the_intermediate_issues_certificates(town: MarbleDeployment) -> None:
    granted = await town.activate()
    for pem in (granted.env["C"], certificates(granted.env[CHAIN])[0]):
        assert x509(pem, "-issuer") == "issuer=CN = MarbleRun Coordinator - Intermediate CA"


async def test_the_metrics_of_activations_begin_with_coordinator(town: MarbleDeployment) -> None:
    text = (await curl(f"http://127.0.0.1:{town.metrics}/metrics")).body
    names = {line.split(b"{")[0] for line in text.splitlines() if b"marble_activations" in line and line[:1] != b"#"}
    counted = {name for name in names if name.endswith(b"_total")}
    assert counted == {b"coordinator_marble_activations_total", b"coordinator_marble_activations_success_total"}


async def test_a_role_may_be_about_the_manifest(machine: Path, tmp_path: Path) -> None:
    """alice's is: her update needs nobody else. What is shown changes with it, and not with one of packages alone."""
    async with deployed(Bench.make(machine), tmp_path) as made:
        await made.set_manifest(owned(**MEMBERS))
        await made.update(b'{"Packages":{"app":{"SecurityVersion":3}}}', ALICE)
        assert (await made.get("/manifest")).data["Manifest"] == b64(owned(**MEMBERS))
        wanted = owned(**MEMBERS | {"Config": {}})
        await made.update(wanted, ALICE)
        assert (await made.get("/manifest")).data["Manifest"] == b64(wanted)


# --- where MarbleRun is fragile


async def test_an_unknown_path_is_answered_also_where_requests_are_counted(town: MarbleDeployment) -> None:
    """MarbleRun drops the connection if its metrics are on."""
    answer = await town.get("/no/such/path")
    assert (answer.status, answer.body) == (405, b'{"status":"error","data":null}\n')
    labels = '{code="405",method="get",path="unknown"}'
    assert await town.metric(f"server_client_api_http_request_total{labels}") == 1


async def test_a_manifest_is_set_by_whoever_comes_first_and_by_nobody_after(town: MarbleDeployment) -> None:
    for path in ("/manifest", "/api/v2/manifest"):
        answer = await town.post(path, {"manifest": b64(owned())})
        assert answer.message == "server is not in expected state"
