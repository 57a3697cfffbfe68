# SPDX-License-Identifier: Apache-2.0
"""Calls about secrets: a user of the manifest reads those it may read and sets user-defined ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from marblemesh.client.answer import Answer, encoded
from marblemesh.client.errors import BadAnswer, NoSuchCall
from marblemesh.client.transport import Transport
from sds.secrets import Secret, SecretKind


@dataclass(frozen=True, slots=True)
class NewSecret:
    """The value of a user-defined secret: `key` of a symmetric or plain one, or DER `certificate` and, if the Marbles
    shall have it, its PKCS#8 DER `private` key."""

    key: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    private: bytes | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, str]:
        """As the API takes it."""
        members = {"Key": self.key, "Cert": self.certificate, "Private": self.private}
        return {name: encoded(value) for name, value in members.items() if value is not None}


async def get_secrets(transport: Transport, names: Sequence[str]) -> Mapping[str, Secret]:
    query = [("s", name) for name in names]
    try:
        answer = await transport.request("GET", "/api/v2/secrets", query=query)
        found = answer.member("secrets")
    except NoSuchCall:
        answer = await transport.request("GET", "/secrets", query=query)
        found = answer.data
    if not isinstance(found, dict):
        raise BadAnswer(f"{answer.request}: want a map of secrets")
    return {str(name): _secret(answer.inner(value)) for name, value in found.items()}


async def set_secrets(transport: Transport, secrets: Mapping[str, NewSecret]) -> None:
    payload = {name: secret.to_json() for name, secret in secrets.items()}
    try:
        await transport.request("POST", "/api/v2/secrets", {"secrets": payload})
    except NoSuchCall:
        await transport.request("POST", "/secrets", payload)


def _secret(answer: Answer) -> Secret:
    try:
        kind = SecretKind(answer.text("Type"))
    except ValueError:
        raise BadAnswer(f"{answer.request}: the answer has a secret of an unknown type") from None
    return Secret(
        kind=kind,
        size=answer.integer("Size"),
        shared=answer.member("Shared") is True,
        user_defined=answer.member("UserDefined") is True,
        valid_for=answer.integer("ValidFor"),
        certificate=answer.binary("Cert") or None,
        private=answer.binary("Private"),
        public=answer.binary("Public"),
    )
