# SPDX-License-Identifier: Apache-2.0
"""Local sockets of a worker without the worker: a server on a path, for clients of this very user."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_call import Methods
from enclave_proxy.local_path import Place
from enclave_proxy.local_peer import Access
from enclave_proxy.local_server import LocalServer
from enclave_proxy.sds_service import SdsService
from enclave_proxy.workload_api import WorkloadApi
from sds.discovery import View
from sds.latest import Latest
from sds.logs import get_logger
from tests.kit.pki import now


def me() -> Access:
    return Access(frozenset({os.geteuid()}))


def local_server(services: Iterable[Methods], access: Access | None = None, **limits: int) -> LocalServer:
    return LocalServer("test", services, access or me(), get_logger("test"), **limits)


def sds(views: Latest[View]) -> Methods:
    return SdsService(views, get_logger("test")).methods


def workload(store: IdentityStore, clock: Callable[[], datetime] = now) -> Methods:
    return WorkloadApi(store.shared, clock).methods


@asynccontextmanager
async def serving_on(path: Path, *services: Methods, access: Access | None = None) -> AsyncIterator[LocalServer]:
    server = local_server(services, access)
    await server.start(Place(path))
    try:
        yield server
    finally:
        await server.stop()
