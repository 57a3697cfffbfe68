# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from enclave_proxy.apply import AppParameters
from enclave_proxy.bootstrap import Credentials
from enclave_proxy.sealed_state import OfflineState, Unsealable, seal, unseal
from sds.attestation.sealing_keys import GramineSealingKeys
from sds.attestation.simulated import SimulatedEnclave
from sds.material import TrustBundle
from sds.resources import offline_secret
from tests.kit.pki import marble, now, shared_ca
from tests.kit.platform import shared_platform

WEB = SimulatedEnclave.default("web")
KEYS = shared_platform().sealing_keys(WEB)


def state() -> OfflineState:
    ca = shared_ca()
    return OfflineState(
        marble_type="web",
        uuid="u-u-i-d",
        pin="",
        heard=now(),
        allowed_until=now() + timedelta(hours=1),
        credentials=Credentials(marble(ca), ca.bundle, TrustBundle(ca.chain_pem)),
        parameters=AppParameters({"conf/a": b"\0\xff"}, {"NAME": b"\xfe"}, ("app", "-x")),
        resources=(offline_secret(timedelta(hours=1)),),
    )


def test_what_was_sealed_comes_back_whole() -> None:
    kept = state()
    assert unseal(seal(kept, KEYS), KEYS) == kept


def test_nothing_of_it_can_be_read_without_the_key() -> None:
    kept = state()
    sealed = seal(kept, KEYS)
    assert kept.credentials.identity.chain not in sealed
    assert b"PRIVATE KEY" not in sealed
    assert b"web" not in sealed
    assert "PRIVATE" not in repr(kept)


def test_no_two_writings_share_a_key() -> None:
    one, other = (json.loads(seal(state(), KEYS)[4:].split(b"}")[0] + b"}") for _ in range(2))
    assert one["salt"] != other["salt"]


@pytest.mark.parametrize(
    "enclave",
    [
        replace(WEB, unique_id=bytes(32)),
        replace(WEB, debug=not WEB.debug),
        replace(WEB, unique_id=bytes(32), security_version=WEB.security_version + 1),
    ],
)
def test_other_code_cannot_open_it_not_even_a_new_version_of_the_same_signer(enclave: SimulatedEnclave) -> None:
    with pytest.raises(Unsealable, match="sealed by another enclave or on another machine, or was changed"):
        unseal(seal(state(), KEYS), shared_platform().sealing_keys(enclave))


def test_every_change_is_noticed() -> None:
    sealed = seal(state(), KEYS)
    step = max(1, len(sealed) // 200)
    for position in (*range(130), *range(130, len(sealed), step), len(sealed) - 1):
        spoiled = bytearray(sealed)
        spoiled[position] ^= 1
        with pytest.raises(Unsealable):
            unseal(bytes(spoiled), KEYS)


def test_every_cut_is_noticed() -> None:
    sealed = seal(state(), KEYS)
    for size in (*range(150), len(sealed) - 1):
        with pytest.raises(Unsealable):
            unseal(sealed[:size], KEYS)


def test_a_tee_without_key_seals_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unsealable, match="the TEE gives no sealing key"):
        seal(state(), GramineSealingKeys(tmp_path))


def test_gramine_s_key_of_the_measurement_opens_it(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "_sgx_mrenclave").write_bytes(b"m" * 16)
    (tmp_path / "keys" / "_sgx_mrsigner").write_bytes(b"s" * 16)
    keys = GramineSealingKeys(tmp_path)
    sealed = seal(state(), keys)
    assert unseal(sealed, keys) == replace(state(), credentials=unseal(sealed, keys).credentials)
    with pytest.raises(Unsealable, match="it was sealed on platform 'gramine', this is simulated"):
        unseal(sealed, KEYS)


def test_it_expires_with_the_identity_if_that_ends_first() -> None:
    kept = state()
    assert kept.expires == kept.allowed_until
    long = replace(kept, allowed_until=now() + timedelta(days=9999))
    assert long.expires == kept.credentials.identity.not_after
