# SPDX-License-Identifier: Apache-2.0
"""The root of every error that this package raises on purpose."""


class SdsError(Exception):
    """Something about an identity, its evidence or its secrets is not acceptable."""
