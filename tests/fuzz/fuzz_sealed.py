# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a state directory as a start finds it, and the state inside, as whoever has its key may have written it.

`python -m tests.fuzz.fuzz_sealed` runs it under atheris, where that is installed; the unit tests run it over mutations.
The first byte says what the rest is: sealed_data, sealed_key, a raw key, or state JSON.
"""

from __future__ import annotations

import json
import secrets

from manifests.parse import parse
from tests.fuzz.driver import run
from tests.kit.records import former_roots, manifest_bytes, records
from tests.kit.stores import sealed_by
from xds_server.records_json import Writer
from xds_server.records_read import read_records
from xds_server.sealed_files import DEK_SIZES, SealedData
from xds_server.sealed_key import PlainKey
from xds_server.store_errors import KeyUnavailable, StoreDamaged, WrongKey

DEK = secrets.token_bytes(32)  # what opens under it was sealed by this process
_RAW = manifest_bytes(Secrets={"s": {"Type": "plain", "UserDefined": True}})
_STATE = records(_RAW, activations={"web": 3}, counters={"a": 1}, update_log=("{}",), former=former_roots())
STATE = Writer().write(_STATE, parse(_RAW))
DATA = SealedData.seal(DEK, b'{"' + b"0" * 64 + b'":true}', STATE).to_bytes()
KEY = sealed_by().protect(DEK, parse(_RAW).config.seal_mode, DATA)
SEEDS = (b"\0" + DATA, b"\1" + KEY, b"\2" + DEK, b"\3" + STATE)


def fuzz_one(data: bytes) -> None:
    """Any bytes are refused with an error of the store, or are what was written."""
    kind, data = data[:1], data[1:]
    try:
        match kind:
            case b"\0":
                _data(data)
            case b"\1":
                if sealed_by().reveal(data, DATA) != DEK:
                    raise AssertionError("a sealed key opened that nobody sealed")
            case b"\2":
                if len(PlainKey().reveal(data, DATA)) not in DEK_SIZES:
                    raise AssertionError("a raw key of a length that is none")
            case _:
                _state(data)
    except (StoreDamaged, KeyUnavailable, WrongKey):
        return


def _data(data: bytes) -> None:
    parsed = SealedData.parse(data)
    if parsed.to_bytes() != data:
        raise AssertionError("sealed_data is read as something else")
    if parsed.open(DEK) != STATE:
        raise AssertionError("a state opened that nobody sealed")


def _state(data: bytes) -> None:
    found = read_records(data)
    again = read_records(Writer().write(found.records, found.manifest))
    if again.records != found.records:
        raise AssertionError(f"what was read is not what is written: {sorted(json.loads(data))}")


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
