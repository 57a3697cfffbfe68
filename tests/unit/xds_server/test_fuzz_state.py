# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets of sealed files and recovery over genuine input, mutations of it, and noise."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import fuzz_recovery, fuzz_sealed

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def mutated(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A genuine input with a few bytes changed, a piece of another one in it, or its end missing."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(0, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        if draw(st.booleans()):
            other, at = draw(st.sampled_from(seeds)), draw(st.integers(0, len(data)))
            size = draw(st.integers(0, 100))
            data[at : at + size] = other[at : at + size]
        return bytes(data[: draw(st.sampled_from([len(data), draw(st.integers(0, len(data)))]))])

    return build()


quick = settings(max_examples=80, deadline=None)


@quick
@given(mutated(fuzz_sealed.SEEDS))
def test_mutations_of_sealed_files(data: bytes) -> None:
    fuzz_sealed.fuzz_one(data)


@quick
@given(st.integers(0, 3), st.binary(max_size=300))
def test_noise_as_sealed_files(kind: int, data: bytes) -> None:
    fuzz_sealed.fuzz_one(bytes([kind]) + data)


_ENTRIES: dict[str, str] = json.loads(fuzz_sealed.STATE)
_scalars = st.none() | st.booleans() | st.integers(-2, 2**65) | st.text(max_size=4)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner)
)
_blobs = st.binary(max_size=60) | _values.map(lambda value: json.dumps(value).encode())


@quick
@given(st.sampled_from(sorted(_ENTRIES)), _blobs)
def test_a_state_with_any_value_under_any_key(key: str, value: bytes) -> None:
    fuzz_sealed.fuzz_one(b"\3" + json.dumps(_ENTRIES | {key: base64.b64encode(value).decode()}).encode())


@quick
@given(st.sampled_from(["secret:s", "previousSecret:s", "pendingUpdate", "package:p"]), st.data())
def test_a_state_with_any_member_in_its_structures(key: str, data: st.DataObject) -> None:
    names = ["Type", "Size", "Cert", "Private", "SecurityVersion", "manifestRaw", "requiredUsers"]
    members: dict[str, Any] = {
        "Type": "plain",
        "manifestRaw": "",
        "requiredUsers": {},
        "missingAcknowledgments": 0,
        **data.draw(st.dictionaries(st.sampled_from(names), _values, max_size=2)),
    }
    value = base64.b64encode(json.dumps(members).encode()).decode()
    fuzz_sealed.fuzz_one(b"\3" + json.dumps(_ENTRIES | {key: value}).encode())


@quick
@given(mutated(fuzz_recovery.SEEDS))
def test_mutations_of_recovery_input(data: bytes) -> None:
    fuzz_recovery.fuzz_one(data)


@quick
@given(st.binary(max_size=600))
def test_noise_as_recovery_input(data: bytes) -> None:
    fuzz_recovery.fuzz_one(data)


def test_the_seeds_are_genuine() -> None:
    for seed in (*fuzz_sealed.SEEDS, *fuzz_recovery.SEEDS):
        for target in (fuzz_sealed, fuzz_recovery):
            if seed in target.SEEDS:
                target.fuzz_one(seed)
