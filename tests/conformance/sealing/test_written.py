# SPDX-License-Identifier: Apache-2.0
"""What a real process leaves on disk when it is killed: files, formats and every entry of the state, read without it.

The data key comes from the owner of the recovery key, by OpenSSL; the rest is AES-GCM, JSON and OpenSSL again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sds.attestation.sealing_keys import SealPolicy
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave, SimulatedPlatform
from tests.kit.coordinator import PACKAGE
from tests.kit.coordinator_process import coordinator
from tests.kit.deployment import b64
from tests.kit.key_owner import key_owner
from tests.kit.openssl_judge import certificates, openssl, public_key, signed
from tests.kit.outside import UUID, Outside
from tests.kit.parties import document, raising
from tests.kit.sealed import parts, unseal
from tests.kit.users import user

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

COORDINATOR = SimulatedEnclave(SimulatedEnclave.default("coordinator").unique_id, SIMULATED_SIGNER, 3, 3)
FILES = ("sealed_data", "sealed_key")
COUNTER = ":".join(base64.b64encode(part).decode() for part in (b"web", bytes.fromhex(UUID.replace("-", "")), b"foo"))


def manifest(owner: str) -> bytes:
    secrets = {
        "mine": {"Type": "plain", "UserDefined": True},
        "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    }
    parameters = {
        "Files": {"/f": {"Data": "ff", "Encoding": "hex"}},
        "Env": {"E": {"Data": "{{ x }}", "NoTemplates": True}},
        "Argv": ["web"],
    }
    members: dict[str, object] = {
        "Packages": {"app": PACKAGE | {"SecurityVersion": 2}, "lib": {"UniqueID": "AB" * 32, "Debug": False}},
        "Marbles": {"web": {"Package": "app", "MaxActivations": 12, "Parameters": parameters, "TLS": ["t"]}},
        "TLS": {"t": {"Incoming": [{"Port": "80"}], "Outgoing": [{"Addr": "web", "Port": "1"}]}},
        "Infrastructures": {"i": {"CPUSVN": "AAEC", "QESVN": 2, "PCESVN": 3, "RootCA": [4]}},
        "RecoveryKeys": {"owner": owner},
        "Config": {"FeatureGates": ["MonotonicCounter"]},
    }
    return json.dumps(document("alice", "bob", Secrets=secrets, **members), indent=1).encode() + b"\n"


@dataclass
class Left:
    """What there is when the process is gone."""

    home: Path
    dek: bytes
    manifest: bytes
    update: bytes
    log: list[str]
    root: bytes
    intermediate: bytes
    marble_root: bytes
    signature: bytes
    before: dict[str, bytes]
    marble: dict[str, bytes]

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def entries(self) -> dict[str, bytes]:
        return unseal(self.file("sealed_data"), self.dek)

    def file(self, name: str) -> bytes:
        return (self.state / name).read_bytes()

    def json(self, key: str) -> Any:
        return json.loads(self.entries[key])

    def clients(self, process: Any) -> Outside:
        machine = SimulatedPlatform.open(self.home / "machine", datetime.now(UTC))
        return Outside(process.port("client"), process.port("mesh"), self.home, machine)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def left(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Left]:
    """After ten activations, a counter, a raised version, a secret and an update that waits: `kill -9`."""
    home = tmp_path_factory.mktemp("written")
    owner = key_owner(home)
    raw = manifest(owner.pem)
    found = Left(home, b"", raw, json.dumps(document("alice")).encode(), [], b"", b"", b"", b"", {}, {})
    async with coordinator(home / "machine", state=found.state) as process:
        clients = found.clients(process)
        answer = await clients.set_manifest(raw)
        found.dek = owner.decrypt(answer.data["RecoverySecrets"]["owner"])
        assert (await clients.update(raising(app=3), "dave")).status == 200
        for _ in range(10):
            found.marble = dict(await clients.activate())
        assert (await clients.count(found.marble, "foo", 258)).data == {"value": 0}
        found.before = {name: found.file(name) for name in FILES}
        assert (await clients.update(found.update)).data["missingUsers"] == ["bob"]
        found.root, found.intermediate, found.marble_root = await clients.ca()
        found.log = (await clients.get("/api/v2/update")).data["updateLog"]
        signature = (await clients.get("/api/v2/manifest")).data["manifestSignatureRootECDSA"]
        found.signature = base64.b64decode(signature)
        assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
    yield found


# --- files


async def test_the_two_files_are_for_their_owner_only(left: Left) -> None:
    assert [(left.state / name).stat().st_mode & 0o777 for name in FILES] == [0o600, 0o600]
    assert left.state.stat().st_mode & 0o777 == 0o700


async def test_each_change_renames_the_files_before_it_to_old_and_leaves_nothing_temporary(left: Left) -> None:
    assert {name: left.file(f"{name}.old") for name in FILES} == left.before
    assert sorted(path.name for path in left.state.iterdir() if not path.name.endswith(".old")) == ["lock", *FILES]


async def test_sealed_data_is_recovery_data_with_its_length_and_the_sealed_state(left: Left) -> None:
    data = left.file("sealed_data")
    assert data[:8] == b"\4\0\0\0null"
    nonce, ciphertext = data[8:20], data[20:]
    state = json.loads(AESGCM(left.dek).decrypt(nonce, ciphertext, None))
    assert all(isinstance(value, str) for value in state.values())
    with pytest.raises(InvalidTag):
        AESGCM(left.dek).decrypt(nonce, ciphertext, b"null")


async def test_each_change_is_sealed_under_the_same_data_key_of_256_bits_and_another_nonce(left: Left) -> None:
    now, before = (parts(left.file(name))[1][:12] for name in ("sealed_data", "sealed_data.old"))
    assert (len(left.dek), now == before) == (32, False)
    assert "pendingUpdate" not in unseal(left.file("sealed_data.old"), left.dek)


async def test_sealed_key_is_key_info_with_its_length_and_the_data_key_bound_to_this_sealed_data(left: Left) -> None:
    file = left.file("sealed_key")
    size = int.from_bytes(file[:4], "little")
    info, nonce, sealed = file[4 : 4 + size], file[4 + size :][:12], file[4 + size :][12:]
    members = json.loads(info)
    assert (members["v"], members["platform"], members["policy"]) == (1, "simulated", "ProductKey")
    keys = SimulatedPlatform.open(left.home / "machine", datetime.now(UTC)).sealing_keys(COORDINATOR)
    key = keys.derive(SealPolicy.PRODUCT_KEY, bytes.fromhex(members["salt"]), b"marblemesh sealed_key 1\0" + info)
    digest = hashlib.sha256(left.file("sealed_data")).digest()
    assert AESGCM(key).decrypt(nonce, sealed, digest) == left.dek
    for other in (None, hashlib.sha256(left.file("sealed_data.old")).digest()):
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(nonce, sealed, other)


async def test_nothing_but_these_entries_is_in_the_state_and_ours_which_are_marked(left: Left) -> None:
    assert {key for key in left.entries if not key.startswith("marblemesh:")} == {
        *("state", "rootSecret", "previousRootSecret", "manifest", "manifestSignature", "updateLog", "pendingUpdate"),
        *(f"certificate:{name}" for name in ("coordinatorRootCert", "coordinatorIntermediateCert", "marbleRootCert")),
        *(f"privateKey:{name}" for name in ("coordinatorRootKey", "coordinatorIntermediateKey")),
        *("package:app", "package:lib", "infrastructure:i", "marble:web", "TLS:t"),
        *(f"{generation}:{name}" for generation in ("secret", "previousSecret") for name in ("mine", "key")),
        *("user:alice", "user:bob", "user:dave", "activations:web", f"monotonicCounter:{COUNTER}"),
    }


# --- entries


async def test_the_state_is_a_decimal_number(left: Left) -> None:
    assert left.entries["state"] == b"3"


async def test_the_root_secrets_are_32_raw_bytes_and_before_a_rotation_the_same(left: Left) -> None:
    assert len(left.entries["rootSecret"]) == 32
    assert left.entries["previousRootSecret"] == left.entries["rootSecret"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("coordinatorRootCert", "root"),
        ("coordinatorIntermediateCert", "intermediate"),
        ("marbleRootCert", "marble_root"),
    ],
)
async def test_certificates_are_der(left: Left, name: str, shown: str) -> None:
    pem: bytes = getattr(left, shown)
    assert left.entries[f"certificate:{name}"] == openssl("x509", "-outform", "DER", data=pem)


@pytest.mark.parametrize(
    ("name", "shown"), [("coordinatorRootKey", "root"), ("coordinatorIntermediateKey", "intermediate")]
)
async def test_private_keys_are_sec1_der(left: Left, name: str, shown: str) -> None:
    der = left.entries[f"privateKey:{name}"]
    assert der[3:6] == b"\x02\x01\x01", "version 1: ECPrivateKey, not PKCS#8, which has 0"
    pem = openssl("ec", "-inform", "DER", data=der)
    assert public_key(pem, "pkey") == public_key(getattr(left, shown))


async def test_the_intermediate_key_is_the_marble_root_s_too(left: Left) -> None:
    assert public_key(left.intermediate) == public_key(left.marble_root)


async def test_the_manifest_is_kept_to_the_byte_with_the_signature_that_is_shown(left: Left) -> None:
    assert (left.entries["manifest"], left.entries["manifestSignature"]) == (left.manifest, left.signature)
    assert signed(openssl("x509", "-pubkey", "-noout", data=left.root), left.signature, left.manifest)


async def test_a_package_has_go_s_field_names_and_its_effective_security_version(left: Left) -> None:
    assert left.json("package:app") == {
        "Debug": False,
        "UniqueID": "",
        "SignerID": SIMULATED_SIGNER.hex(),
        "ProductID": 7,
        "SecurityVersion": 3,
        "AcceptedTCBStatuses": None,
        "AcceptedAdvisories": None,
    }
    assert left.json("package:lib")["UniqueID"] == "ab" * 32


async def test_infrastructures_marbles_and_tls_tags_have_go_s_field_names(left: Left) -> None:
    assert left.json("infrastructure:i") == {"CPUSVN": "AAEC", "QESVN": 2, "PCESVN": 3, "RootCA": "BA=="}
    assert left.json("TLS:t") == {
        "Outgoing": [{"Port": "1", "Addr": "web"}],
        "Incoming": [{"Port": "80", "Cert": "", "DisableClientAuth": False}],
    }
    assert left.json("marble:web") == {
        "Package": "app",
        "MaxActivations": 12,
        "Parameters": {
            "Files": {"/f": {"Data": "/w==", "Encoding": "base64", "NoTemplates": False}},
            "Env": {"E": {"Data": "{{ x }}", "Encoding": "string", "NoTemplates": True}},
            "Argv": ["web"],
        },
        "TLS": ["t"],
        "DisableSecretBinding": False,
    }


async def test_an_unset_secret_is_exactly_this(left: Left) -> None:
    assert left.entries["secret:mine"] == (
        b'{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,"Cert":null,"ValidFor":0,"Private":null,"Public":null}'
    )


async def test_a_key_is_its_private_and_public_part_and_its_own_previous_one(left: Left) -> None:
    key = left.json("secret:key")
    assert (key["Private"], len(base64.b64decode(key["Private"]))) == (key["Public"], 16)
    assert left.entries["previousSecret:key"] == left.entries["secret:key"]


async def test_a_user_has_its_certificate_and_what_it_may_do(left: Left) -> None:
    assert left.json("user:alice") == {
        "Name": "alice",
        "Certificate": b64(user("alice").der),
        "Permissions": {
            name: {"PermissionID": name, "ResourceID": resources}
            for name, resources in (
                ("UpdateManifest", {}),
                ("ReadSecret", {"mine": True, "key": True}),
                ("WriteSecret", {"mine": True}),
            )
        },
    }


async def test_activations_are_counted_in_hexadecimal(left: Left) -> None:
    assert left.entries["activations:web"] == b"a"


async def test_a_counter_is_a_uint64_little_endian_under_type_uuid_and_name_in_base64(left: Left) -> None:
    assert left.entries[f"monotonicCounter:{COUNTER}"] == bytes([2, 1, 0, 0, 0, 0, 0, 0])


async def test_the_update_log_is_the_lines_that_are_shown(left: Left) -> None:
    assert left.entries["updateLog"].decode().split("\n") == left.log
    assert len(left.log) == 3


async def test_a_pending_update_is_its_bytes_who_was_asked_and_how_many_are_missing(left: Left) -> None:
    assert left.json("pendingUpdate") == {
        "manifestRaw": b64(left.update),
        "requiredUsers": {"alice": True, "bob": False},
        "missingAcknowledgments": 1,
    }


# --- and again


async def test_the_next_process_goes_on_with_all_of_it(left: Left) -> None:
    async with coordinator(left.home / "machine", state=left.state) as process:
        clients = left.clients(process)
        assert await clients.status() == 3
        assert await clients.ca() == (left.root, left.intermediate, left.marble_root)
        assert (await clients.get("/api/v2/manifest")).data["manifest"] == b64(left.manifest)
        assert (await clients.get("/api/v2/update")).data["updateLog"] == left.log
        assert (await clients.pending()).data["manifest"] == b64(left.update)
        assert (await clients.count(left.marble, "foo", 0)).data == {"value": 258}
        for _ in range(2):
            chain = certificates((await clients.activate())["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
            assert chain[1] == left.intermediate
        assert "reached max activations count (12)" in await clients.refusal()
