# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a worker: one root, and one class per way of answering.

Messages are for operators: what was seen, what was expected, what to do. None of them ever carries a key, a secret or
a file's content.
"""

from __future__ import annotations

from typing import ClassVar


class ProxyError(Exception):
    """Root of everything the worker raises on purpose. `exit_code`: how the process ends if nobody handles it."""

    exit_code: ClassVar[int] = 1


class ConfigError(ProxyError):
    """The settings are wrong; names the variable and flag. Nothing was started."""

    exit_code = 2


class StartError(ProxyError):
    """This machine or its file system does not let the worker start (UUID file, run directory, attestation device)."""


class ActivationRefused(ProxyError):
    """The Coordinator answered, and its answer is final: asking again with the same evidence changes nothing."""


class ActivationUnavailable(ProxyError):
    """Nobody answers yet, or the Coordinator has no manifest yet. Ask again later."""


class CoordinatorNotTrusted(ProxyError):
    """A pin was given and the Coordinator that answers does not match it. Nothing was sent to it but public values."""


class ParametersError(ProxyError):
    """What the Coordinator sent (files, environment, arguments, identity) cannot be used. Nothing was written."""


class CommandError(ProxyError):
    """There is no program to start, or it cannot be started."""

    exit_code = 127


class Revoked(ProxyError):
    """The Coordinator has turned this Marble out of the mesh. It was cut off; to come back it must be activated anew,
    as something that the manifest allows."""


class RoutesError(ProxyError):
    """A pushed resource says something that this worker cannot enforce, or that makes no sense. Becomes a NACK."""

    def __init__(self, resource: str, member: str, problem: str) -> None:
        self.resource = resource
        self.member = member
        super().__init__(f"{resource}: {member}: {problem}" if member else f"{resource}: {problem}")


class MissingReference(RoutesError):
    """A resource names another one that has not arrived (yet)."""
