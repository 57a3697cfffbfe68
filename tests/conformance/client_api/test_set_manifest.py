# SPDX-License-Identifier: Apache-2.0
"""Setting the manifest: what is taken, which step refuses what, and that a refusal changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.coordinator import PACKAGE, manifest
from tests.kit.deployment import ERROR, b64
from tests.kit.outside import Outside
from tests.kit.parties import raw
from tests.kit.sealed import unseal
from tests.kit.site import INSECURE, site

LEAF = {"Type": "cert-ecdsa", "Size": 256}
UNFIT = LEAF | {"Cert": {"SignatureAlgorithm": 4}}
WRONG_ALGORITHM = "secret s: requested SignatureAlgorithm does not match private key type"


def web(**parameters: object) -> dict[str, object]:
    return {"Marbles": {"web": {"Package": "app", "Parameters": parameters}}}


# --- refused; one Coordinator for all, since nothing changes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outside]:
    async with site(tmp_path_factory.mktemp("refusing")) as running:
        yield running.outside
        assert await running.outside.status() == 2
        assert [path.name for path in running.state.iterdir()] == ["lock"]


STEPS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "unmarshaling manifest: line 1 column 2: "),
    "YAML": (b"Packages:\n  app: {}\n", "unmarshaling manifest: "),
    "something after it": (manifest() + b"x", "unmarshaling manifest: "),
    "no object": (b"[]", "unmarshaling manifest: want a JSON object, got an array"),
    "a wrong type": (manifest(Packages=[]), "unmarshaling manifest: want an object, got an array (at Packages)"),
    "a number that is none": (manifest(Config={"UpdateThreshold": "1"}), "unmarshaling manifest: want a whole"),
    "an unknown encoding": (
        manifest(**web(Env={"A": {"Data": "x", "Encoding": "rot13"}})),
        "checking manifest: unknown encoding type: rot13 (at Marbles.web.Parameters.Env.A.Encoding)",
    ),
    "no base64": (
        manifest(**web(Env={"A": {"Data": "?", "Encoding": "base64"}})),
        "checking manifest: illegal base64 data: ",
    ),
    "no hex": (
        manifest(**web(Files={"/f": {"Data": "0", "Encoding": "HEX"}})),
        "checking manifest: illegal hex data: ",
    ),
    "null for a value": (
        manifest(**web(Files={"/f": None})),
        "unmarshaling manifest: got: %!t(<nil>), expected: string or interface",
    ),
    "nothing": (b"{}", "checking manifest: no allowed packages defined"),
    "a shared secret": (manifest(Secrets={"s": UNFIT | {"Shared": True}}),
                        f"generating secrets from manifest: {WRONG_ALGORITHM}"),
    "each Marble's own secret": (manifest(Secrets={"s": UNFIT}),
                                 f"generating placeholder secrets from manifest: {WRONG_ALGORITHM}"),
    "a recovery key": (manifest(RecoveryKeys={"k": "x"}), "generating recovery encryption key: "),
    "a template of a file": (
        manifest(**web(Files={"/f": "{{ hex .Secrets.x }}"})),
        'running manifest template dry run: in Marble web: file /f: template: data:1:3: executing "data" at '
        "<hex .Secrets.x>: error calling hex: secret does not exist",
    ),
    "a template of a variable": (
        manifest(**web(Env={"A": "{{ raw .Secrets.x }}"})),
        "running manifest template dry run: in Marble web: env variable: A: template: data:1:3: function",
    ),
}  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", STEPS)
async def test_a_refusal_begins_with_the_step_that_found_out(refusing: Outside, name: str) -> None:
    sent, text = STEPS[name]
    answer = await refusing.set_manifest(sent)
    assert (answer.status, answer.kind) == (500, ERROR)
    assert answer.message.startswith(text)


async def test_a_manifest_that_cannot_be_written_is_not_in_force(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        elsewhere = running.state.rename(tmp_path / "elsewhere")
        answer = await running.outside.set_manifest(manifest())
        assert (answer.status, answer.message.startswith("sealing state: ")) == (500, True)
        assert await running.outside.status() == 2
        assert (await running.outside.refusal()).startswith("FAILED_PRECONDITION: ")
        elsewhere.rename(running.state)
        assert (await running.outside.set_manifest(manifest())).status == 200
        assert await running.outside.status() == 3


# --- taken


async def test_whoever_comes_first_sets_it_and_nobody_after(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        assert (await running.outside.post("/manifest", manifest(), "mallory")).status == 200
        for who in (None, "mallory", "alice"):
            answer = await running.outside.post("/manifest", raw("alice"), who)
            assert (answer.status, answer.message) == (400, "server is not in expected state")


async def test_everybody_may_read_it_and_its_log(tmp_path: Path) -> None:
    async with site(tmp_path, manifest()) as running:
        for path in ("/manifest", "/update"):
            for prefix in ("", "/api/v2"):
                assert (await running.outside.get(prefix + path)).status == 200


def as_go_writes_it() -> bytes:
    """Every member there is, those without a value as null or zero."""
    package = {"Debug": False, "UniqueID": "", "AcceptedTCBStatuses": None, "AcceptedAdvisories": None} | PACKAGE
    parameters = {
        "Files": {"/f": {"Data": "{{ hex .Secrets.s }}", "Encoding": "string", "NoTemplates": False}},
        "Env": {"A": {"Data": "YQ==", "Encoding": "Base64", "NoTemplates": False}},
        "Argv": None,
    }
    marble = {
        "Package": "app",
        "MaxActivations": 0,
        "Parameters": parameters,
        "TLS": None,
        "DisableSecretBinding": False,
    }
    secret = {"Type": "symmetric-key", "Size": 128, "Shared": True, "UserDefined": False, "Cert": None, "ValidFor": 0,
              "Private": None, "Public": None}  # fmt: skip
    config = {"SealMode": "", "FeatureGates": None, "UpdateThreshold": 0, "RecoveryThreshold": 0,
              "RotateRootSecret": False}  # fmt: skip
    infrastructure = {"CPUSVN": "AAEC", "QESVN": 2, "PCESVN": 3, "RootCA": None}
    return json.dumps(
        {
            "Packages": {"app": package}, "Infrastructures": {"i": infrastructure}, "Marbles": {"web": marble},
            "Users": None, "Roles": None, "RecoveryKeys": None, "Secrets": {"s": secret}, "TLS": None,
            "Config": config,
        }
    ).encode()  # fmt: skip


async def test_a_manifest_that_a_go_client_has_written_anew_is_taken(tmp_path: Path) -> None:
    async with site(tmp_path, as_go_writes_it()) as running:
        assert (await running.outside.activate())["A"] == b"a"


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
async def test_member_names_are_read_in_any_case(tmp_path: Path, change: Any) -> None:
    def changed(value: Any, depth: int = 0) -> Any:
        # Names of packages and Marbles, at every second depth, are not members.
        if not isinstance(value, dict):
            return value
        return {change(k) if depth % 2 == 0 else k: changed(v, depth + 1) for k, v in value.items()}

    async with site(tmp_path, json.dumps(changed(json.loads(manifest()))).encode()) as running:
        await running.outside.activate()


@pytest.mark.parametrize("bytes_as", ["AAEC", [0, 1, 2]], ids=["base64", "numbers"])
async def test_infrastructures_are_kept_in_either_form_and_not_enforced(tmp_path: Path, bytes_as: object) -> None:
    members = {"i": {"CPUSVN": bytes_as, "RootCA": bytes_as, "QESVN": 9, "PCESVN": 9}}
    async with site(tmp_path, manifest(Infrastructures=members), **INSECURE) as running:
        kept = json.loads(unseal(running.file(), running.file("sealed_key"))["infrastructure:i"])
        assert kept == {"CPUSVN": "AAEC", "QESVN": 9, "PCESVN": 9, "RootCA": "AAEC"}
    async with site(tmp_path / "attested", manifest(Infrastructures=members)) as running:
        await running.outside.activate()


async def test_arguments_are_no_templates(tmp_path: Path) -> None:
    async with site(tmp_path, manifest(**web(Argv=["{{ hex .Secrets.x }}", "a"]))) as running:
        assert await running.outside.arguments() == ["{{ hex .Secrets.x }}", "a"]


@pytest.mark.parametrize(
    "package",
    [{"Debug": True}, PACKAGE | {"AcceptedTCBStatuses": ["no such status"]}],
    ids=["an incomplete package for debugging", "a TCB status that does not exist"],
)
async def test_what_can_never_match_is_only_warned_about(tmp_path: Path, package: dict[str, object]) -> None:
    async with site(tmp_path, manifest(Packages={"app": package})) as running:
        assert await running.outside.status() == 3


async def test_only_packages_that_a_marble_names_are_checked(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        both = {"UniqueID": "ab" * 32, "SignerID": "ab" * 32, "ProductID": 1, "SecurityVersion": 1}
        answer = await running.outside.set_manifest(manifest(Packages={"app": PACKAGE, "later": both}))
        assert answer.status == 200


async def test_the_bytes_that_came_are_the_ones_that_are_kept(tmp_path: Path) -> None:
    odd = b" \r\n" + manifest().replace(b'"Argv"', b'"Argv" \n\t') + b"\n"
    async with site(tmp_path, odd) as running:
        assert (await running.outside.get("/api/v2/manifest")).data["manifest"] == b64(odd)
