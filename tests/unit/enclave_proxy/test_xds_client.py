# SPDX-License-Identifier: Apache-2.0
"""What the worker makes of the way in which its stream to the Coordinator ends."""

from __future__ import annotations

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from enclave_proxy.xds_client import is_disowned, revocation


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GRPCError(Status.PERMISSION_DENIED, "revoked: the manifest says so"), "revoked: the manifest says so"),
        (GRPCError(Status.PERMISSION_DENIED, "this instance is not activated: activate it again"), None),
        (GRPCError(Status.PERMISSION_DENIED), None),
        (GRPCError(Status.UNAVAILABLE, "revoked: says somebody between us"), None),
        (ConnectionResetError("revoked: "), None),
    ],
)
def test_only_the_coordinators_own_word_turns_a_marble_out(error: BaseException, reason: str | None) -> None:
    assert revocation(error) == reason


def test_an_instance_that_is_only_unknown_may_be_activated_again() -> None:
    assert is_disowned(GRPCError(Status.PERMISSION_DENIED, "this instance is not activated: activate it again"))
