# SPDX-License-Identifier: Apache-2.0
"""Nothing that collecting thousands of tests makes is garbage: the collector does not look at it, then or later."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
