# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever bytes are pushed as listener, cluster or endpoints, they are understood or refused by name.

python tests/fuzz/fuzz_routes.py      under atheris: make fuzz
"""

from __future__ import annotations

from pathlib import Path

from enclave_proxy.errors import RoutesError
from enclave_proxy.route_parts import Local, parse_cluster, parse_endpoints, parse_listener
from tests.fuzz.driver import run

LOCAL = Local(Path("/run/m"), refuse_plain_tcp=True)


def fuzz_one(data: bytes) -> None:
    for parse in (parse_listener, parse_cluster, parse_endpoints):
        try:
            part = parse("inbound|8080", data, LOCAL)
        except RoutesError as error:
            if not str(error).startswith("inbound|8080: "):
                raise AssertionError(f"refused without its name: {error}") from error
            continue
        if parse is parse_listener and part.require_client_certificate and part.tls.bundle is None:
            raise AssertionError("client certificates are required and verified against nothing")


if __name__ == "__main__":
    run(fuzz_one)
