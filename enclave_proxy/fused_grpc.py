# SPDX-License-Identifier: Apache-2.0
"""grpcio opens its sockets in its C core: ports and targets of the mesh are rewritten to `unix:` where it takes them.

The authority that a server sees stays what the client has dialled, as it would over TCP.
"""

from __future__ import annotations

import functools
import importlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from enclave_proxy.fused_decisions import Decisions
from enclave_proxy.relay_config import Address

_SCHEME = re.compile(r"(dns|ipv4|ipv6):(//[^/]*/)?", re.IGNORECASE)
_PORT = re.compile(r":(\d{1,5})$")
_HTTPS = 443


class GrpcAddresses:
    """`install` after `grpc` was imported."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def install(self) -> None:
        """Wrap the functions that take addresses, of the blocking and the asyncio API. Raises ImportError if this
        version of grpcio has not got them, because its sockets could not be watched then."""
        grpc, aio = importlib.import_module("grpc"), importlib.import_module("grpc.aio")
        try:
            servers = (
                importlib.import_module("grpc._server")._Server,
                importlib.import_module("grpc.aio._server").Server,
            )
            for server in servers:
                for name in ("add_insecure_port", "add_secure_port"):
                    setattr(server, name, self._listening(getattr(server, name)))
            for module in (grpc, aio):
                for name in ("insecure_channel", "secure_channel"):
                    setattr(module, name, self._dialling(getattr(module, name)))
        except AttributeError as error:
            raise ImportError(f"this grpcio cannot be used in fused mode: {error}", name="grpc") from error

    def _listening(self, original: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(original)
        def call(server: Any, address: str | bytes, *rest: Any, **options: Any) -> int:
            host, port = _host_port(address)
            if port is None:
                return original(server, address, *rest, **options)
            path = self._decisions.bind(socket.SOCK_STREAM, host, port)
            if path is None:
                return original(server, address, *rest, **options)
            original(server, f"unix:{path}", *rest, **options)
            Path(path).chmod(0o600)
            return port

        return call

    def _dialling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        secure = 1 if original.__name__ == "secure_channel" else 0

        @functools.wraps(original)
        def call(target: str, *rest: Any, **options: Any) -> Any:
            found = self._target(target, _HTTPS)
            if found is None:
                return original(target, *rest, **options)
            given = rest[secure] if len(rest) > secure else options.pop("options", None)
            with_authority = [("grpc.default_authority", _SCHEME.sub("", target)), *(given or ())]
            if len(rest) > secure:
                rest = (*rest[:secure], with_authority, *rest[secure + 1 :])
            else:
                options["options"] = with_authority
            return original(str(found), *rest, **options)

        return call

    def _target(self, target: str, default_port: int) -> Address | None:
        host, port = _host_port(target)
        if not host:
            return None
        return self._decisions.connect(socket.SOCK_STREAM, host, default_port if port is None else port)


def _host_port(address: str | bytes) -> tuple[str, int | None]:
    """The host and port of gRPC's forms; no host for schemes that are not TCP's (`unix:`, `vsock:`)."""
    text = unquote(address.decode() if isinstance(address, bytes) else address)
    text = _SCHEME.sub("", text)
    if text.startswith(("unix:", "unix-abstract:", "vsock:", "xds:")):
        return "", None
    found = _PORT.search(text)
    if found is None or (text.count(":") > 1 and not text.startswith("[")):
        return text.strip("[]"), None
    return text[: found.start()].strip("[]"), int(found.group(1))
