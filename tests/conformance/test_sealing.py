# SPDX-License-Identifier: Apache-2.0
"""Conformance: what MarbleRun's standalone store keeps on disk, byte for byte. Read here without our own code."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from sds.attestation.sealing_keys import SealPolicy
from sds.secrets import Secret, SecretKind
from tests.kit.manifests import certificate
from tests.kit.platform import shared_platform
from tests.kit.records import ROOT_SECRET, ca, manifest_bytes, records
from tests.kit.stores import COORDINATOR, DEK, filled, loaded, sealed_by
from xds_server.records import PendingUpdate, Records
from xds_server.sealed_key import PlainKey
from xds_server.state import State
from xds_server.store import Fresh, Locked, Store
from xds_server.store_errors import StoreError

RECOVERY_DATA = b'{"' + b"ab" * 32 + b'":true}'
MANIFEST = manifest_bytes(
    Marbles={
        "web": {
            "Package": "p",
            "MaxActivations": 2,
            "Parameters": {
                "Files": {"/f": {"Data": "ff", "Encoding": "hex"}},
                "Env": {"E": {"Data": "{{ x }}", "NoTemplates": True}},
                "Argv": ["web"],
            },
            "TLS": ["t"],
        }
    },
    Secrets={"s": {"Type": "plain", "UserDefined": True}},
    TLS={"t": {"Incoming": [{"Port": "80"}], "Outgoing": [{"Addr": "web", "Port": "1"}]}},
    Users={"u": {"Certificate": certificate(), "Roles": ["r"]}},
    Roles={"r": {"ResourceType": "Secrets", "ResourceNames": ["s"], "Actions": ["readsecret", "WriteSecret"]}},
    Infrastructures={"i": {"CPUSVN": "AAEC", "QESVN": 2, "PCESVN": 3, "RootCA": [4]}},
)
STATE = records(
    MANIFEST,
    previous_root_secret=bytes(32),
    manifest_signature=b"\x30\x00",
    security_versions={"p": 7},
    secrets={"s": Secret(SecretKind.PLAIN, user_defined=True)},
    previous_secrets={
        "s": Secret(SecretKind.SYMMETRIC_KEY, 128, shared=True, private=bytes(16), public=bytes(16)),
    },
    activations={"web": 26},
    counters={"d2Vi:AAAAAAAAAAAAAAAAAAAAAA==:Zm9v": 258},
    update_log=('{"a":1}', '{"b":2}'),
    pending_update=PendingUpdate(b"{}", {"u": True, "v": False}, 1),
)


def unseal(path: Path, dek: bytes = DEK) -> dict[str, bytes]:
    """The state JSON of a sealed_data file, by the description of its format alone."""
    data = (path / "sealed_data").read_bytes()
    body = data[4 + int.from_bytes(data[:4], "little") :]
    state = json.loads(AESGCM(dek).decrypt(body[:12], body[12:], None))
    return {key: base64.b64decode(value, validate=True) for key, value in state.items()}


def seal(path: Path, state: dict[str, bytes], dek: bytes = DEK) -> None:
    """A state directory as MarbleRun's build without enclave writes it."""
    path.mkdir(exist_ok=True)
    text = json.dumps({key: base64.b64encode(value).decode() for key, value in state.items()}).encode()
    nonce = bytes(12)
    sealed = AESGCM(dek).encrypt(nonce, text, None)
    (path / "sealed_data").write_bytes(b"\4\0\0\0null" + nonce + sealed)
    (path / "sealed_key").write_bytes(dek)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with STATE in it, for tests that only look."""
    path = tmp_path_factory.mktemp("sealed") / "state"
    filled(path, STATE, recovery_data=RECOVERY_DATA, times=2)
    return path


@pytest.fixture(scope="module")
def state(path: Path) -> dict[str, bytes]:
    return unseal(path)


def read_raw(path: Path) -> Records:
    with Store.open(path, PlainKey()) as store:
        return loaded(store)


# --- files


def test_the_files_have_marblerun_s_names_and_mode_0600(path: Path) -> None:
    for name in ("sealed_data", "sealed_key", "sealed_data.old", "sealed_key.old"):
        assert (path / name).stat().st_mode & 0o777 == 0o600


def test_sealed_data_begins_with_the_recovery_data_in_clear_and_its_length(path: Path) -> None:
    assert (path / "sealed_data").read_bytes().startswith(len(RECOVERY_DATA).to_bytes(4, "little") + RECOVERY_DATA)


def test_the_state_is_sealed_with_aes_256_gcm_under_a_nonce_of_its_own(path: Path) -> None:
    nonces = {(path / name).read_bytes()[4 + len(RECOVERY_DATA) :][:12] for name in ("sealed_data", "sealed_data.old")}
    assert len(nonces) == 2
    assert unseal(path)["state"] == b"3"


def test_sealed_key_holds_the_data_key_bound_to_its_sealed_data(path: Path) -> None:
    file = (path / "sealed_key").read_bytes()
    size = int.from_bytes(file[:4], "little")
    info, sealed = file[4 : 4 + size], file[4 + size :]
    members = json.loads(info)
    assert (members["v"], members["platform"], members["policy"]) == (1, "simulated", "ProductKey")
    keys = shared_platform().sealing_keys(COORDINATOR)
    key = keys.derive(SealPolicy.PRODUCT_KEY, bytes.fromhex(members["salt"]), b"marblemesh sealed_key 1\0" + info)
    digest = hashlib.sha256((path / "sealed_data").read_bytes()).digest()
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], digest) == DEK
    with pytest.raises(InvalidTag):
        AESGCM(key).decrypt(sealed[:12], sealed[12:], None)


def test_without_attestation_sealed_key_is_the_raw_data_key(tmp_path: Path) -> None:
    with Store.open(tmp_path, PlainKey()) as store:
        store.new_key(DEK, b"null")
        store.commit(STATE)
    assert (tmp_path / "sealed_key").read_bytes() == DEK
    assert read_raw(tmp_path) == STATE


def test_both_files_are_written_anew_at_every_commit(tmp_path: Path) -> None:
    filled(tmp_path, times=2)
    for name in ("sealed_data", "sealed_key"):
        assert (tmp_path / name).read_bytes() != (tmp_path / f"{name}.old").read_bytes()


# --- the state's keys and values


def test_state_is_a_decimal(state: dict[str, bytes]) -> None:
    assert state["state"] == b"3"


def test_root_secrets_are_raw_bytes(state: dict[str, bytes]) -> None:
    assert (state["rootSecret"], state["previousRootSecret"]) == (ROOT_SECRET, bytes(32))


def test_certificates_are_der(state: dict[str, bytes]) -> None:
    assert state["certificate:coordinatorRootCert"] == ca().root.public_bytes(Encoding.DER)
    assert state["certificate:coordinatorIntermediateCert"] == ca().intermediate.public_bytes(Encoding.DER)
    assert state["certificate:marbleRootCert"] == ca().marble_root.public_bytes(Encoding.DER)


@pytest.mark.parametrize("name", ["coordinatorRootKey", "coordinatorIntermediateKey"])
def test_private_keys_are_sec1_der(state: dict[str, bytes], name: str) -> None:
    der = state[f"privateKey:{name}"]
    key = load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert der == key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert der[:2] == b"\x30\x81"
    assert der[3:6] == b"\x02\x01\x01", "version 1: ECPrivateKey, not PKCS#8 (which has 0)"


def test_the_manifest_is_kept_exactly_as_uploaded(state: dict[str, bytes]) -> None:
    assert (state["manifest"], state["manifestSignature"]) == (MANIFEST, b"\x30\x00")


def structure(state: dict[str, bytes], key: str) -> Any:
    return json.loads(state[key])


def test_a_package_has_its_effective_security_version(state: dict[str, bytes]) -> None:
    assert structure(state, "package:p") == {
        "Debug": False,
        "UniqueID": "",
        "SignerID": "ab" * 32,
        "ProductID": 1,
        "SecurityVersion": 7,
        "AcceptedTCBStatuses": None,
        "AcceptedAdvisories": None,
    }


def test_infrastructures_marbles_and_tls_tags_have_go_s_field_names(state: dict[str, bytes]) -> None:
    assert structure(state, "infrastructure:i") == {"CPUSVN": "AAEC", "QESVN": 2, "PCESVN": 3, "RootCA": "BA=="}
    assert structure(state, "TLS:t") == {
        "Outgoing": [{"Port": "1", "Addr": "web"}],
        "Incoming": [{"Port": "80", "Cert": "", "DisableClientAuth": False}],
    }
    assert structure(state, "marble:web") == {
        "Package": "p",
        "MaxActivations": 2,
        "Parameters": {
            "Files": {"/f": {"Data": "/w==", "Encoding": "base64", "NoTemplates": False}},
            "Env": {"E": {"Data": "{{ x }}", "Encoding": "string", "NoTemplates": True}},
            "Argv": ["web"],
        },
        "TLS": ["t"],
        "DisableSecretBinding": False,
    }


def test_an_unset_secret_is_exactly_marblerun_s_vector(state: dict[str, bytes]) -> None:
    assert state["secret:s"] == (
        b'{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,"Cert":null,"ValidFor":0,"Private":null,"Public":null}'
    )


def test_a_previous_secret_has_a_key_of_its_own(state: dict[str, bytes]) -> None:
    zeros = base64.b64encode(bytes(16)).decode()
    assert structure(state, "previousSecret:s") == {
        "Type": "symmetric-key",
        "Size": 128,
        "Shared": True,
        "UserDefined": False,
        "Cert": None,
        "ValidFor": 0,
        "Private": zeros,
        "Public": zeros,
    }


def test_a_user_has_its_certificate_and_what_it_may_do(state: dict[str, bytes]) -> None:
    user = structure(state, "user:u")
    assert user["Name"] == "u"
    assert base64.b64decode(user["Certificate"])[:1] == b"\x30"
    assert user["Permissions"] == {
        name: {"PermissionID": name, "ResourceID": {"s": True}} for name in ("ReadSecret", "WriteSecret")
    }


def test_activations_are_hexadecimal(state: dict[str, bytes]) -> None:
    assert state["activations:web"] == b"1a"


def test_a_monotonic_counter_is_a_uint64_little_endian(state: dict[str, bytes]) -> None:
    assert state["monotonicCounter:d2Vi:AAAAAAAAAAAAAAAAAAAAAA==:Zm9v"] == b"\x02\x01\0\0\0\0\0\0"


def test_the_update_log_is_lines_of_json(state: dict[str, bytes]) -> None:
    assert state["updateLog"] == b'{"a":1}\n{"b":2}'


def test_a_pending_update_names_who_has_agreed(state: dict[str, bytes]) -> None:
    assert structure(state, "pendingUpdate") == {
        "manifestRaw": "e30=",
        "requiredUsers": {"u": True, "v": False},
        "missingAcknowledgments": 1,
    }


# --- states of MarbleRun


def test_a_state_of_marblerun_s_build_without_enclave_is_loaded(tmp_path: Path, state: dict[str, bytes]) -> None:
    seal(tmp_path / "state", state)
    assert read_raw(tmp_path / "state") == STATE


def test_a_data_key_of_16_bytes_from_before_1_9_is_still_accepted(tmp_path: Path, state: dict[str, bytes]) -> None:
    seal(tmp_path / "state", state, DEK[:16])
    assert read_raw(tmp_path / "state") == STATE


def test_without_root_secret_the_root_key_s_scalar_is_used(tmp_path: Path, state: dict[str, bytes]) -> None:
    old = {key: value for key, value in state.items() if key not in ("rootSecret", "previousRootSecret")}
    seal(tmp_path / "state", old)
    found = read_raw(tmp_path / "state")
    key = ca().root_key.load()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert found.root_secret == key.private_numbers().private_value.to_bytes(48)
    assert found.previous_root_secret == found.root_secret


def test_without_previous_root_secret_the_current_one_is_used(tmp_path: Path, state: dict[str, bytes]) -> None:
    seal(tmp_path / "state", {key: value for key, value in state.items() if key != "previousRootSecret"})
    assert read_raw(tmp_path / "state").previous_root_secret == ROOT_SECRET


# --- what a start makes of it


def test_nothing_is_persisted_until_a_manifest_is_set(tmp_path: Path) -> None:
    with Store.open(tmp_path, sealed_by()) as store:
        store.commit(records(b"", state=State.ACCEPTING_MANIFEST))
        assert store.load() == Fresh()


def test_a_lost_sealed_key_leads_to_recovery(tmp_path: Path) -> None:
    filled(tmp_path, recovery_data=RECOVERY_DATA)
    (tmp_path / "sealed_key").unlink()
    with Store.open(tmp_path, sealed_by()) as store:
        assert store.load() == Locked(RECOVERY_DATA, "there is no sealed_key")


@pytest.mark.parametrize("name", ["sealed_data", "sealed_key"])
def test_an_older_copy_of_one_file_leads_to_recovery(tmp_path: Path, name: str) -> None:
    filled(tmp_path, times=2)
    older = (tmp_path / f"{name}.old").read_bytes()
    for file in tmp_path.glob("*.old"):
        file.unlink()
    (tmp_path / name).write_bytes(older)
    with Store.open(tmp_path, sealed_by()) as store:
        assert isinstance(store.load(), Locked)


def test_without_attestation_a_wrong_sealed_key_ends_the_start(tmp_path: Path, state: dict[str, bytes]) -> None:
    for wrong in (bytes(32), b"short"):
        seal(tmp_path / "state", state)
        (tmp_path / "state" / "sealed_key").write_bytes(wrong)
        with Store.open(tmp_path / "state", PlainKey()) as store, pytest.raises(StoreError, match="does not open"):
            store.load()


@pytest.mark.parametrize(
    ("mode", "policy"), [("", "ProductKey"), ("ProductKey", "ProductKey"), ("UniqueKey", "UniqueKey")]
)
def test_the_seal_mode_chooses_the_tee_s_key(tmp_path: Path, mode: str, policy: str) -> None:
    filled(tmp_path, records(manifest_bytes(Config={"SealMode": mode})))
    assert f'"policy":"{policy}"'.encode() in (tmp_path / "sealed_key").read_bytes()


def test_seal_mode_disabled_keeps_everything_in_memory(tmp_path: Path) -> None:
    filled(tmp_path, records(manifest_bytes(Config={"SealMode": "Disabled"})))
    assert {file.name for file in tmp_path.iterdir()} == {"lock"}
