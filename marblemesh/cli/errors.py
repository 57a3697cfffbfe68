# SPDX-License-Identifier: Apache-2.0
"""The command line's own errors; `str()` is the one line that is printed."""

from __future__ import annotations


class CliError(Exception):
    """The verb cannot be carried out: a file, a setting or an answer is not what it must be. Exit status 1."""


class NegativeResult(CliError):
    """The verb was carried out and the answer is no. Exit status 1."""
