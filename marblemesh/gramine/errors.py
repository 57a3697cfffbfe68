# SPDX-License-Identifier: Apache-2.0
"""The one error of this package; `str()` is a line for people."""

from __future__ import annotations


class GramineError(Exception):
    """No manifest can be made: an environment, a program or a setting is not what it must be."""
