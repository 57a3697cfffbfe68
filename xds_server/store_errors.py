# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with the state on disk. Texts name the file and what to do, never a key or a record."""

from __future__ import annotations

from xds_server.errors import CoordinatorError


class StoreError(CoordinatorError):
    """The state directory cannot be used. At start-up this is fatal: going on would mean to forget the state."""


class StoreDamaged(StoreError):
    """What lies there is not a state that this program wrote, or no longer."""


class KeyUnavailable(StoreError):
    """The data key cannot be had from `sealed_key`: another machine, another enclave, an older copy. Recovery helps."""


class WrongKey(StoreError):
    """This data key does not open the sealed state."""


class CommitFailed(StoreError):
    """The new state was not written. The old one stays in force, on disk and in memory."""


class CommitInDoubt(CommitFailed):
    """The new state was not safely written, nor could it be taken back: after a restart either one may be in force.
    The store accepts nothing more until then."""
