# SPDX-License-Identifier: Apache-2.0
"""Verbs that talk to a Coordinator: what they print, keep and refuse."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from marblemesh.cli.app import run
from sds.attestation.simulated import SIMULATED_SIGNER
from sds.ca import CertificateAuthority
from tests.kit.fake_coordinator import COORDINATOR
from tests.kit.manifests import manifest, raw
from tests.kit.operator import Operator, operating

MANIFEST = raw(manifest())
FINGERPRINT = hashlib.sha256(MANIFEST).hexdigest()


@pytest.fixture
async def operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    async with operating(tmp_path, capsys, monkeypatch) as somebody:
        yield somebody


async def test_status_is_code_and_message(operator: Operator) -> None:
    result = await operator.call("status", operator.fake.address)
    assert (result.status, result.out) == (0, "2: Coordinator is ready to accept a manifest.\n")
    assert result.err == "warning: simulation: this proves nothing about hardware\n"
    result = await operator.call("status", operator.fake.address, "-o", "json")
    assert json.loads(result.out)["code"] == 2


async def test_set_uploads_the_exact_bytes_and_keeps_the_certificates(operator: Operator) -> None:
    path = operator.write("m.json", MANIFEST)
    result = await operator.call("manifest", "set", path, operator.fake.address)
    assert (result.status, result.out) == (0, f"Manifest fingerprint: {FINGERPRINT}\n")
    assert operator.fake.posts == [MANIFEST]
    assert operator.kept.read_bytes() == operator.fake.ca.chain_pem
    again = await operator.call("manifest", "set", path, operator.fake.address)
    assert again.status == 1
    assert again.line == (
        f"marblemesh: POST https://{operator.fake.address}/api/v2/manifest: "
        "500 Internal Server Error: error: server is not in expected state"
    )
    assert again.err.splitlines()[-1].endswith("'marblemesh manifest update apply' changes it")


async def test_set_refuses_a_bad_manifest_before_it_talks_to_anybody(operator: Operator) -> None:
    path = operator.write("m.json", b'{"Packages": }')
    result = await operator.call("manifest", "set", path, operator.fake.address)
    assert (result.status, result.err) == (1, f"marblemesh: {path}:1:14: invalid JSON: expecting value\n")
    path = operator.write("m.json", raw(manifest(TLS={"t": {"Incoming": [{"Port": "1", "Peers": ["nobody"]}]}})))
    result = await operator.call("manifest", "set", path, operator.fake.address)
    assert "peer 'nobody' is neither a Marble type nor a gateway" in result.err
    assert operator.fake.posts == []
    assert (await operator.call("manifest", "set", path, operator.fake.address, "--no-check")).status == 0


async def test_set_converts_yaml(operator: Operator) -> None:
    path = operator.write("m.yaml", json.dumps(manifest()).encode())
    assert (await operator.call("manifest", "set", path, operator.fake.address)).status == 0
    assert json.loads(operator.fake.posts[0]) == manifest()


async def test_recovery_secrets_are_written_or_printed_but_never_lost(operator: Operator) -> None:
    operator.fake.recovery_secrets = {"key": "c2VjcmV0"}
    expected = {"RecoverySecrets": {"key": "c2VjcmV0"}}
    path, target = operator.write("m.json", MANIFEST), operator.home / "recovery.json"
    result = await operator.call("manifest", "set", path, operator.fake.address, "-r", target)
    assert (result.status, json.loads(target.read_bytes())) == (0, expected)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "c2VjcmV0" not in result.out

    operator.fake.manifest = None
    result = await operator.call("manifest", "set", path, operator.fake.address, "-o", "json")
    assert json.loads(result.out) == {"manifestFingerprint": FINGERPRINT, **expected}

    operator.fake.manifest = None
    result = await operator.call("manifest", "set", path, operator.fake.address, "-r", operator.home / "no" / "dir")
    assert (result.status, json.loads(result.out.splitlines()[1])) == (1, expected)
    assert "the manifest is set, and the recovery secrets are printed on stdout instead" in result.line


async def test_get_prints_or_writes_the_manifest(operator: Operator) -> None:
    none = await operator.call("manifest", "get", operator.fake.address)
    assert (none.status, none.line.endswith("error: requested value not set")) == (1, True)
    operator.fake.manifest = MANIFEST
    assert (await operator.call("manifest", "get", operator.fake.address)).out == MANIFEST.decode() + "\n"
    path = operator.home / "out.json"
    assert (await operator.call("manifest", "get", operator.fake.address, "-o", path)).out == ""
    assert path.read_bytes() == MANIFEST
    signed = json.loads((await operator.call("manifest", "get", operator.fake.address, "-s")).out)
    assert signed == {"ManifestSignature": FINGERPRINT, "Manifest": manifest()}
    assert not operator.kept.exists()
    whole = json.loads((await operator.call("manifest", "get", operator.fake.address, "-o", "json", "--keep-cert")).out)
    assert (base64.b64decode(whole["manifest"]), whole["manifestFingerprint"]) == (MANIFEST, FINGERPRINT)
    assert operator.kept.exists()


async def test_verify_manifest_says_ok_or_no(operator: Operator) -> None:
    operator.fake.manifest = MANIFEST
    path = operator.write("m.json", MANIFEST)
    for wanted in (path, FINGERPRINT, FINGERPRINT.upper()):
        result = await operator.call("manifest", "verify", wanted, operator.fake.address)
        assert (result.status, result.out) == (0, "OK\n")
    assert operator.kept.exists()
    result = await operator.call("manifest", "verify", "0" * 64, operator.fake.address, "-o", "json")
    assert (result.status, json.loads(result.out)["match"]) == (1, False)
    assert f"its fingerprint is {FINGERPRINT}, expected {'0' * 64}" in result.line
    result = await operator.call("manifest", "verify", "nothing", operator.fake.address)
    assert result.line == "marblemesh: 'nothing' is neither a file nor a fingerprint (64 hex digits)"


async def test_verify_prints_what_was_proven(operator: Operator) -> None:
    result = await operator.call("verify", operator.fake.address)
    facts = dict(line.split(":", 1) for line in result.out.splitlines())
    assert result.status == 0
    assert facts["UniqueID"].strip() == COORDINATOR.unique_id.hex()
    assert facts["Hardware"].strip() == "simulated, proves nothing about hardware"
    assert facts["Manifest"].strip() == "none set yet"
    operator.fake.manifest = MANIFEST
    proven = json.loads((await operator.call("verify", operator.fake.address, "-o", "json")).out)
    assert proven["claims"]["tcb_status"] == "UpToDate"
    assert proven["claims"]["simulated"] is True
    assert proven["manifestFingerprint"] == FINGERPRINT


async def test_an_era_config_says_what_to_expect(operator: Operator) -> None:
    era = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 3, "SecurityVersion": 4}
    path = operator.write("era.json", json.dumps(era).encode())
    result = await operator.call("verify", operator.fake.address, "--era-config", path)
    assert (result.status, "security version: want at least 4, got 3" in result.line) == (1, True)
    path = operator.write("era.json", json.dumps(era | {"SecurityVersion": 3}).encode())
    quote = operator.home / "quote"
    result = await operator.call(
        "verify", operator.fake.address, "--era-config", path, "--nonce", "fresh", "--save-sgx-quote", quote
    )
    assert (result.status, COORDINATOR.unique_id in quote.read_bytes()) == (0, True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "era config: not JSON"),
        (b"{}", "give UniqueID, or SignerID"),
        (b"", "is empty"),
        (b"\xff\xfe\0", "not JSON"),
    ],
)
async def test_a_bad_era_config_is_one_line(operator: Operator, content: bytes, reason: str) -> None:
    path = operator.write("era.json", content)
    result = await operator.call("verify", operator.fake.address, "--era-config", path)
    assert (result.status, len(result.err.splitlines())) == (1, 1)
    assert reason in result.line
    assert str(path) in result.line


async def test_a_simulated_quote_is_nothing_without_simulation(operator: Operator) -> None:
    era = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 3, "SecurityVersion": 3}
    operator.write("../here/era-config.json", json.dumps(era).encode())
    result = await operator.call("verify", operator.fake.address, simulation=False)
    assert result.status == 1
    assert "is not trusted" in result.line


async def test_nobody_is_trusted_without_a_reason(operator: Operator) -> None:
    result = await operator.call("manifest", "get", operator.fake.address, simulation=False)
    assert result.status == 1
    assert result.line.startswith("marblemesh: which Coordinator may be trusted?")


async def test_insecure_works_and_says_so(operator: Operator) -> None:
    operator.fake.without_quote, operator.fake.manifest = True, MANIFEST
    result = await operator.call("manifest", "verify", FINGERPRINT, operator.fake.address, "-i", simulation=False)
    assert (result.status, result.out) == (0, "OK\n")
    assert result.err == "warning: --insecure: nothing about this Coordinator was verified\n"


async def test_status_is_content_with_the_kept_certificate(operator: Operator) -> None:
    await operator.call("verify", operator.fake.address, "--keep-cert")
    result = await operator.call("status", operator.fake.address, simulation=False)
    assert (result.status, result.err) == (0, "")


async def test_a_kept_certificate_that_no_longer_fits_is_named(operator: Operator) -> None:
    operator.kept.parent.mkdir()
    for content, reason in (
        (CertificateAuthority.create([], [], datetime.now(UTC)).chain_pem, "it was set up anew, or this is not it"),
        (CertificateAuthority.create([], [], datetime(2999, 1, 1, tzinfo=UTC)).chain_pem, "valid from 2999-01-01"),
        (b"garbage", f"{operator.kept}: holds no PEM certificate"),
        (b"", "is empty"),
    ):
        operator.kept.write_bytes(content)
        result = await operator.call("status", operator.fake.address, simulation=False)
        assert (result.status, len(result.err.splitlines())) == (1, 1)
        assert reason in result.line


@pytest.mark.parametrize(
    ("which", "name", "number"),
    [
        ("root", "marblerunRootCA.crt", 1),
        ("intermediate", "marblerunIntermediateCA.crt", 1),
        ("chain", "marblerunChainCA.crt", 2),
    ],
)
async def test_certificates_are_written_where_marblerun_writes_them(
    operator: Operator, which: str, name: str, number: int
) -> None:
    refused = await operator.call("certificate", which, operator.fake.address)
    assert (refused.status, "to compare with" in refused.line) == (1, True)
    await operator.call("verify", operator.fake.address, "--keep-cert")
    assert (await operator.call("certificate", which, operator.fake.address)).status == 0
    file = operator.here / name
    written = x509.load_pem_x509_certificates(file.read_bytes())
    ca = operator.fake.ca
    assert written == {"root": [ca.root], "intermediate": [ca.intermediate], "chain": [ca.intermediate, ca.root]}[which]
    printed = (await operator.call("certificate", which, operator.fake.address, "-o", "-")).out
    assert printed.encode() == file.read_bytes()
    described = json.loads((await operator.call("certificate", which, operator.fake.address, "-o", "json")).out)
    assert len(described["certificates"]) == number


async def test_certificates_of_another_coordinator_are_not_written(operator: Operator) -> None:
    operator.kept.parent.mkdir()
    operator.kept.write_bytes(CertificateAuthority.create([], [], datetime.now(UTC)).chain_pem)
    result = await operator.call("certificate", "root", operator.fake.address)
    assert (result.status, list(operator.here.iterdir())) == (1, [])
    assert "is not the one kept in" in result.line
    assert (await operator.call("certificate", "root", operator.fake.address, "-i", simulation=False)).status == 0


async def test_the_platform_is_where_the_environment_says_as_for_coordinator_and_worker(
    operator: Operator, tmp_path: Path
) -> None:
    directory = {"EDG_SIMULATED_PLATFORM_DIR": str(operator.fake.directory / "platform")}
    words = ["status", operator.fake.address, "--simulation"]
    assert await asyncio.to_thread(run, words, {**directory, "XDG_CONFIG_HOME": str(tmp_path)}) == 0
    assert await asyncio.to_thread(run, words, {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}) == 1


async def test_a_platform_that_nobody_made_is_not_made_by_looking(operator: Operator, tmp_path: Path) -> None:
    arguments = ("--simulation", "--simulated-platform", tmp_path / "other")
    result = await operator.call("verify", operator.fake.address, *arguments, simulation=False)
    assert result.line.startswith("marblemesh: no simulated platform at")
    assert not (tmp_path / "other").exists()
