# SPDX-License-Identifier: Apache-2.0
"""Who a simulated enclave or trust domain pretends to be: the measurements that its quotes will carry."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Self

from sds.attestation.errors import Malformed

SIMULATED_SIGNER = hashlib.sha256(b"marblemesh simulated signer").digest()

_MEMBERS = frozenset({"UniqueID", "SignerID", "ProductID", "SecurityVersion", "Debug"})
_ZERO_48 = bytes(48)


@dataclass(frozen=True, slots=True)
class SimulatedEnclave:
    """An SGX enclave: MRENCLAVE and MRSIGNER of 32 bytes, ISVPRODID and ISVSVN of 16 bits."""

    unique_id: bytes
    signer_id: bytes
    product_id: int
    security_version: int
    debug: bool = False

    def __post_init__(self) -> None:
        for name, value in (("UniqueID", self.unique_id), ("SignerID", self.signer_id)):
            if len(value) != 32:
                raise Malformed(f"simulated enclave: {name} has {len(value)} bytes, expected 32")
        for name, number in (("ProductID", self.product_id), ("SecurityVersion", self.security_version)):
            if not 0 <= number <= 0xFFFF:
                raise Malformed(f"simulated enclave: {name} is {number}, expected 0 to 65535")

    @classmethod
    def default(cls, name: str) -> Self:
        """An enclave with a measurement made from a name, so that a manifest can be written before anything runs."""
        return cls(hashlib.sha256(b"marblemesh simulated enclave " + name.encode()).digest(), SIMULATED_SIGNER, 1, 1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read ``{"UniqueID", "SignerID", "ProductID", "SecurityVersion", "Debug"}``, as in a manifest's package.

        IDs are hex. Without ``UniqueID`` it is made from the other three, without ``SignerID`` it is the simulation's.

        :raises Malformed: naming the member that is wrong.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise Malformed(f"simulated enclave: not JSON: {e}") from e
        if not isinstance(value, dict):
            raise Malformed("simulated enclave: expected a JSON object with UniqueID, SignerID, ProductID, ...")
        if unknown := sorted(value.keys() - _MEMBERS):
            raise Malformed(
                f"simulated enclave: unknown member {unknown[0]!r}, known are {', '.join(sorted(_MEMBERS))}"
            )
        signer = _hex(value, "SignerID") or SIMULATED_SIGNER
        product, version = _number(value, "ProductID"), _number(value, "SecurityVersion")
        made_up = hashlib.sha256(b"marblemesh simulated enclave %d %d " % (product, version) + signer).digest()
        debug = value.get("Debug", False)
        if not isinstance(debug, bool):
            raise Malformed("simulated enclave: Debug is neither true nor false")
        return cls(_hex(value, "UniqueID") or made_up, signer, product, version, debug)


@dataclass(frozen=True, slots=True)
class SimulatedTd:
    """A TDX trust domain; every measurement has 48 bytes."""

    mrtd: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes] = (_ZERO_48, _ZERO_48, _ZERO_48, _ZERO_48)
    mrconfigid: bytes = _ZERO_48
    mrowner: bytes = _ZERO_48
    mrownerconfig: bytes = _ZERO_48
    debug: bool = False

    def __post_init__(self) -> None:
        for value in (self.mrtd, *self.rtmr, self.mrconfigid, self.mrowner, self.mrownerconfig):
            if len(value) != 48:
                raise Malformed(f"simulated trust domain: a measurement has {len(value)} bytes, expected 48")

    @classmethod
    def default(cls, name: str) -> Self:
        """A trust domain with an MRTD made from a name."""
        return cls(hashlib.sha384(b"marblemesh simulated td " + name.encode()).digest())


def _hex(value: dict[str, object], name: str) -> bytes:
    try:
        return bytes.fromhex(str(value.get(name) or ""))
    except ValueError as e:
        raise Malformed(f"simulated enclave: {name} is not hex") from e


def _number(value: dict[str, object], name: str) -> int:
    number = value.get(name, 1)
    if not isinstance(number, int) or isinstance(number, bool):
        raise Malformed(f"simulated enclave: {name} is not a whole number")
    return number
