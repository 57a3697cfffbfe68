# SPDX-License-Identifier: Apache-2.0
"""Which local sockets a worker has, what each serves, and to whom.

    sds.sock        SDS
    workload.sock   SPIFFE Workload API, and SDS too: what a SPIRE agent has on its one socket

Under SGX the kernel underneath is Gramine's, which says nothing about the other end of a UNIX socket. Only code of the
same enclave can reach it (its bytes are encrypted between the enclave's processes), so that everybody is let in there;
an operator who names users would rely on what nobody checks, and is told so. Everywhere else no credentials, no entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from enclave_proxy.config import SOCKET_GIDS, SOCKET_UIDS
from enclave_proxy.errors import ConfigError
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_call import Log
from enclave_proxy.local_path import Place
from enclave_proxy.local_peer import Access
from enclave_proxy.local_server import LocalServer
from enclave_proxy.sds_service import SdsService
from enclave_proxy.socket_settings import SocketSettings
from enclave_proxy.workload_api import WorkloadApi


def local_servers(
    settings: SocketSettings, store: IdentityStore, *, one_enclave: bool, now: Callable[[], datetime], log: Log
) -> list[tuple[LocalServer, Place]]:
    """The servers, not started, each with its place. `one_enclave`: whoever can connect is code of this very enclave.

    Raises ConfigError if users are named where nobody can tell who connects.
    """
    if one_enclave and settings.names_others:
        setting = SOCKET_UIDS if settings.allow_uids else SOCKET_GIDS
        raise ConfigError(f"{setting.names}: cannot be enforced under SGX, where nobody tells who connects: unset it")
    access = Access(settings.allow_uids | {os.geteuid()}, settings.allow_gids, needs_credentials=not one_enclave)
    sds = SdsService(store.view, log).methods
    workload = WorkloadApi(store.shared, now).methods
    servers = []
    if settings.sds is not None:
        servers.append((LocalServer("sds", [sds], access, log), settings.place(settings.sds)))
    if settings.workload is not None:
        servers.append((LocalServer("workload", [workload, sds], access, log), settings.place(settings.workload)))
    return servers
