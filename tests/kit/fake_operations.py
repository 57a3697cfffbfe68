# SPDX-License-Identifier: Apache-2.0
"""A Coordinator with knobs behind the client API: answers what it is told, and notes what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sds.secrets import Secret, SecretKind
from xds_server.answers import (
    AcknowledgeAnswer,
    CoordinatorQuote,
    PendingAnswer,
    RecoveryAnswer,
    SignedManifest,
    SignedQuote,
    Status,
    UpdateAnswer,
)
from xds_server.errors import CoordinatorError, Unauthorized
from xds_server.state import MESSAGES, State


@dataclass
class FakeOperations:
    """`refuse`: method name → what it raises. `calls`: method names with their arguments. `users`: leaf certificates,
    None for everybody. `gate`: what set_manifest waits for."""

    refuse: dict[str, CoordinatorError] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    users: set[bytes] | None = None
    gate: asyncio.Event | None = None
    raw: bytes = b"{}"
    update: UpdateAnswer = field(default_factory=lambda: UpdateAnswer(0, None))
    recovery_secrets: dict[str, bytes] = field(default_factory=dict)

    def _asked(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.refuse:
            raise self.refuse[name]

    def asked(self, name: str) -> list[tuple[object, ...]]:
        """The arguments of each call of this method."""
        return [call[1:] for call in self.calls if call[0] == name]

    def status(self) -> Status:
        self._asked("status")
        return Status(State.ACCEPTING_MANIFEST, MESSAGES[State.ACCEPTING_MANIFEST], simulation=False)

    async def quote(self, nonce: bytes) -> CoordinatorQuote:
        self._asked("quote", nonce)
        return CoordinatorQuote(b"intermediate\nroot\n", b"quote" + nonce, simulation=False)

    def check_accepts_manifest(self) -> None:
        self._asked("check_accepts_manifest")

    async def set_manifest(self, raw: bytes) -> Mapping[str, bytes]:
        self._asked("set_manifest", raw)
        if self.gate is not None:
            await self.gate.wait()
        return self.recovery_secrets

    def manifest(self) -> SignedManifest:
        self._asked("manifest")
        return SignedManifest(b"signature", "f1" * 32, self.raw)

    def update_log(self) -> tuple[str, ...]:
        self._asked("update_log")
        return ('{"time":"t","update":"Initial manifest set"}', '{"update":"<&>"}')

    def check_user(self, certificates: Sequence[bytes]) -> None:
        self._asked("check_user", tuple(certificates))
        if self.users is not None and not set(certificates[:1]) & self.users:
            raise Unauthorized("unauthorized user: client certificate did not match any MarbleRun users")

    def secrets_get(self, names: Sequence[str], certificates: Sequence[bytes]) -> Mapping[str, Secret]:
        self._asked("secrets_get", tuple(names))
        return {name: Secret(SecretKind.PLAIN, user_defined=True) for name in names}

    async def secrets_set(self, payload: Mapping[str, object], certificates: Sequence[bytes]) -> None:
        self._asked("secrets_set", dict(payload))

    async def update_apply(self, raw: bytes, certificates: Sequence[bytes]) -> UpdateAnswer:
        self._asked("update_apply", raw)
        return self.update

    def update_get(self) -> PendingAnswer:
        self._asked("update_get")
        return PendingAnswer("1 user still needs to acknowledge the update manifest", ("bob",), b"{}")

    async def update_acknowledge(self, raw: bytes, certificates: Sequence[bytes]) -> AcknowledgeAnswer:
        self._asked("update_acknowledge", raw)
        text = "All users have acknowledged the update manifest. Update successfully applied"
        return AcknowledgeAnswer(self.update, text)

    async def update_cancel(self, certificates: Sequence[bytes]) -> str:
        self._asked("update_cancel")
        return "Update successfully cancelled"

    async def recovery_public_key(self) -> bytes:
        self._asked("recovery_public_key")
        return b"key"

    async def recover(self, secret: bytes, signature: bytes) -> RecoveryAnswer:
        self._asked("recover", secret, signature)
        return RecoveryAnswer(0, "Recovery successful.")

    def check_sign_quote(self) -> None:
        self._asked("check_sign_quote")

    async def sign_quote(self, quote: bytes) -> SignedQuote:
        self._asked("sign_quote", quote)
        return SignedQuote("UpToDate", b"signature")

    def check_counter(self, certificates: Sequence[bytes]) -> None:
        self._asked("check_counter", tuple(certificates))

    async def set_counter(self, certificates: Sequence[bytes], name: str, value: int) -> int:
        self._asked("set_counter", name, value)
        return 2
