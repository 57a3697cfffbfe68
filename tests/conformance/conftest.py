# SPDX-License-Identifier: Apache-2.0
"""A Coordinator on a simulated platform, without sockets, for the tests of what it does (not of how that travels)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.coordinator import Bench


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated platform's directory."""
    return tmp_path_factory.mktemp("platform")


@pytest.fixture
def bench(machine: Path) -> Iterator[Bench]:
    made = Bench.make(machine)
    yield made
    made.own_quote.stop()
