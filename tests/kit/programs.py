# SPDX-License-Identifier: Apache-2.0
"""Programs that are not ours: a test that needs one is skipped where it is missing, and fails where CI=true."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """The name of an installed program, for a command line. Ends the test if there is none."""
    if shutil.which(name) is None:
        text = f"{name} is not installed"
        if os.environ.get("CI") == "true":  # noqa: TID251 - a test's own environment
            pytest.fail(text)
        pytest.skip(text)
    return name
