# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between a client and a Coordinator: one root, one line of text each."""

from __future__ import annotations


class ClientError(Exception):
    """Root of everything that the client raises on purpose. `str()` is one line for people."""


class AddressError(ClientError):
    """The address is not `host:port`."""


class Unreachable(ClientError):
    """Nobody answered as a Coordinator does: refused, timed out, no TLS, no HTTP, another program."""


class NotTrusted(ClientError):
    """The Coordinator could not prove what it should be, or is not the one whose certificate was pinned."""


class RequestRefused(ClientError):
    """The Coordinator understood and said no. `status` is the HTTP status, `message` its own text."""

    def __init__(self, text: str, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(text)


class NoSuchCall(RequestRefused):
    """The Coordinator does not know this call (405): it is older, or the program at this address is another one."""


class BadAnswer(ClientError):
    """The answer is not what the API promises: no JSON envelope, missing members, a wrong signature."""


class TokenError(ClientError):
    """A PKCS#11 token, its configuration or a key on it is not what it must be."""


class IdentityError(ClientError):
    """A certificate or key file for client authentication or recovery is not what it must be."""
