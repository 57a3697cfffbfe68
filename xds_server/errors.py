# SPDX-License-Identifier: Apache-2.0
"""What the Coordinator refuses: one root. `reason` is the label in metrics, `grpc_status` the Marble API's code."""

from __future__ import annotations

from typing import ClassVar

from grpclib.const import Status


class CoordinatorError(Exception):
    """The Coordinator does not do what it was asked; the text goes to the client."""


class WrongState(CoordinatorError):
    """The operation does not belong to the current state. Clients match this very text."""

    def __init__(self) -> None:
        super().__init__("server is not in expected state")


class NotSet(CoordinatorError):
    """Nothing is stored under what was asked for."""

    def __init__(self) -> None:
        super().__init__("requested value not set")


class ManifestRefused(CoordinatorError):
    """The manifest is not acceptable; the text begins with the step that found out."""


class NotAllowed(CoordinatorError):
    """A known user without the permission; the text names user and action."""


class UpdateRefused(CoordinatorError):
    """An update, or an acknowledgement of one, that cannot be applied."""


class Unauthorized(CoordinatorError):
    """The client is nobody that the manifest knows (401)."""


class NoUpdate(CoordinatorError):
    """No full update is pending (404)."""

    def __init__(self) -> None:
        super().__init__("no update in progress")


class FeatureDisabled(CoordinatorError):
    """The manifest does not enable this feature (403)."""

    def __init__(self, feature: str) -> None:
        super().__init__(f"{feature} feature is not enabled in the manifest")


class QuoteNotVerified(CoordinatorError):
    """The quote to sign is not genuine (400); the text says why."""


class QuoteUnavailable(CoordinatorError):
    """The Coordinator could not make a quote of its own in time."""


class ActivationRefused(CoordinatorError):
    """A Marble gets nothing. Subclasses give the gRPC code; `reason` names the check in metrics."""

    grpc_status: ClassVar[Status] = Status.INTERNAL

    def __init__(self, text: str, reason: str) -> None:
        self.reason = reason
        super().__init__(text)


class NotAcceptingMarbles(ActivationRefused):
    grpc_status = Status.FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("cannot accept marbles in current state", "state")


class NoCertificate(ActivationRefused):
    grpc_status = Status.UNAUTHENTICATED

    def __init__(self) -> None:
        super().__init__("couldn't get marble TLS certificate", "no_certificate")


class VerificationFailed(ActivationRefused):
    """The manifest does not allow this Marble; `text` names the check."""

    grpc_status = Status.PERMISSION_DENIED

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"marble verification failed: {text}", reason)


class InvalidUuid(ActivationRefused):
    grpc_status = Status.INVALID_ARGUMENT

    def __init__(self, text: str) -> None:
        super().__init__(f"invalid UUID: {text}", "invalid_uuid")


class NotIssued(ActivationRefused):
    """Verified, but no certificate or parameters could be made for it."""

    grpc_status = Status.INTERNAL


class Interrupted(ActivationRefused):
    """The manifest or the CA changed while parameters were made; worth another try."""

    grpc_status = Status.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("the manifest was updated during this activation: try again", "interrupted")


class Overloaded(ActivationRefused):
    """Too many activations at once; worth another try."""

    grpc_status = Status.RESOURCE_EXHAUSTED

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} activations at once: try again", "overloaded")


class TimedOut(ActivationRefused):
    """Verification did not end in time (collateral that does not arrive)."""

    grpc_status = Status.DEADLINE_EXCEEDED

    def __init__(self, seconds: float) -> None:
        super().__init__(f"activation did not end within {seconds:g} s: try again", "timeout")
