# SPDX-License-Identifier: Apache-2.0
"""MarbleRun's era config: the JSON file that says which Coordinator to trust.

It is written and read by Go programs, so member names are matched without regard to case, unknown members are ignored
and null means absent. ``TDX`` is ours: a Coordinator in a confidential VM, with the members of a manifest's package.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from sds.attestation.errors import Malformed
from sds.attestation.policy import ACCEPTABLE_TCB_STATUSES, DEFAULT_TCB_STATUSES, Policy, SgxPolicy, TdxPolicy
from sds.attestation.report_data import MAX_NONCE

MAX_ERA_CONFIG = 64 * 1024

_TD_REGISTERS = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3", "MRCONFIGID", "MROWNER", "MROWNERCONFIG", "MRSEAM")


@dataclass(frozen=True, slots=True)
class EraConfig:
    """What the file asks for."""

    policy: Policy
    nonce: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, raw: bytes | str) -> Self:
        """Read the file's content.

        :raises Malformed: naming the member that is wrong, or what is missing to make a policy.
        """
        if len(raw) > MAX_ERA_CONFIG:
            raise Malformed(f"era config: {len(raw)} bytes, at most {MAX_ERA_CONFIG} are accepted")
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise Malformed(f"era config: not JSON: {e}") from e
        members = _Members.of(value, "era config")
        if members.flag("InsecureSkipVerify"):
            # A file is too quiet a place for switching attestation off.
            raise Malformed("era config: InsecureSkipVerify is set; remove it, and use --insecure if it is meant")
        tdx = members.get("TDX")
        policy = _sgx(members) if tdx is None else _tdx(_Members.of(tdx, "era config: TDX"), members)
        return cls(policy, members.nonce())


@dataclass(frozen=True, slots=True)
class _Members:
    """A JSON object with Go's idea of member names."""

    values: Mapping[str, object]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Self:
        if not isinstance(value, dict):
            raise Malformed(f"{where}: expected a JSON object")
        folded = {name.lower(): member for name, member in value.items()}
        if len(folded) != len(value):
            raise Malformed(f"{where}: a member appears twice, in different case")
        return cls(folded, where)

    def get(self, name: str) -> object:
        return self.values.get(name.lower())

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise Malformed(f"{self.where}: {name} is {value!r}, expected true or false")
        return bool(value)

    def number(self, name: str) -> int:
        value = self.get(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0xFFFF:
            raise Malformed(f"{self.where}: {name} is {value!r}, expected a number from 0 to 65535")
        return value

    def measurement(self, name: str, size: int) -> bytes | None:
        value = self.get(name)
        if value is None or value == "":
            return None
        try:
            decoded = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            decoded = b""
        if len(decoded) != size:
            raise Malformed(f"{self.where}: {name} is {value!r}, expected {2 * size} hex digits")
        return decoded

    def texts(self, name: str) -> frozenset[str]:
        value = self.get(name)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Malformed(f"{self.where}: {name} is not a list of texts")
        return frozenset(value)

    def statuses(self) -> frozenset[str]:
        value = self.texts("AcceptedTCBStatuses") or DEFAULT_TCB_STATUSES
        if unknown := sorted(value - ACCEPTABLE_TCB_STATUSES):
            known = ", ".join(sorted(ACCEPTABLE_TCB_STATUSES))
            raise Malformed(f"{self.where}: AcceptedTCBStatuses has {unknown[0]!r}, known are {known}")
        return value

    def nonce(self) -> bytes | None:
        value = self.get("Nonce")
        if value is None or value == "":
            return None
        try:
            nonce = base64.b64decode(str(value), validate=True)
        except ValueError as e:
            raise Malformed(f"{self.where}: Nonce is not base64") from e
        if len(nonce) > MAX_NONCE:
            raise Malformed(f"{self.where}: Nonce has {len(nonce)} bytes, at most {MAX_NONCE} are allowed")
        return nonce


def _sgx(members: _Members) -> SgxPolicy:
    unique_id, signer_id = members.measurement("UniqueID", 32), members.measurement("SignerID", 32)
    product_id, security_version = members.number("ProductID"), members.number("SecurityVersion")
    if unique_id is None and not (signer_id and product_id and security_version):
        raise Malformed(
            "era config: give UniqueID, or SignerID with a ProductID and a SecurityVersion other than 0:"
            " less would accept other programs, or old versions"
        )
    return SgxPolicy(
        unique_id=unique_id,
        signer_id=signer_id,
        product_id=product_id or None,
        security_version=security_version or None,
        debug=members.flag("Debug"),
        accepted_tcb_statuses=members.statuses(),
        accepted_advisories=members.texts("AcceptedAdvisories") or None,
    )


def _tdx(registers: _Members, members: _Members) -> TdxPolicy:
    wanted = {name.lower(): registers.measurement(name, 48) for name in _TD_REGISTERS}
    if wanted["mrtd"] is None:
        raise Malformed("era config: TDX: give at least MRTD")
    return TdxPolicy(
        **wanted,
        accepted_tcb_statuses=members.statuses(),
        accepted_advisories=members.texts("AcceptedAdvisories") or None,
    )
