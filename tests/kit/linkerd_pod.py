# SPDX-License-Identifier: Apache-2.0
"""Pods that Linkerd has been injected into: a namespace with its redirection and its proxy, ours or the real one.

    async with meshed(Workload("a", "10.77.0.1"), Workload("b", "10.77.0.2", opaque={9000})) as town:
        ...

The real proxy runs where LINKERD2_PROXY_BIN names one, with the same environment as the stand-in.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.kit.linkerd_control import ControlPlane, Workload
from tests.kit.linkerd_metrics import Series, parsed
from tests.kit.linkerd_rules import ADMIN, PROXY_UID, Rules, install
from tests.kit.netns import Namespace, kill_group, link, pods

ROOT = Path(__file__).parents[2]
_CONTROL_PORT = 8086
_PATIENCE = 20.0


@dataclass
class Pod:
    """A namespace with a Linkerd proxy in it."""

    namespace: Namespace
    workload: Workload
    directory: Path
    environment: dict[str, str]
    binary: str | None  # None: the stand-in
    _proxy: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    async def start_proxy(self) -> None:
        """Returns when it is ready."""
        command = [self.binary] if self.binary else [sys.executable, "-m", "tests.kit.linkerd_proxy"]
        user = PROXY_UID if self.binary else None  # the stand-in changes its user by itself
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.environment}  # noqa: TID251
        log = self.directory / "proxy.log"
        self._proxy = self.namespace.start(*command, uid=user, env=environment, log=log)
        await self.until("/ready", lambda status, _: status == 200)

    def kill_proxy(self) -> None:
        """kill -9."""
        assert self._proxy is not None
        kill_group(self._proxy)

    async def metrics(self) -> Series:
        return parsed((await self.get(ADMIN, "/metrics"))[1])

    async def get(self, port: int, path: str) -> tuple[int, str]:
        """HTTP from within the pod, over its loopback."""
        async with (
            aiohttp.ClientSession(connector=connector_in(self.namespace)) as client,
            client.get(f"http://127.0.0.1:{port}{path}") as reply,
        ):
            return reply.status, await reply.text()

    async def until(self, path: str, wanted: Callable[[int, str], bool]) -> None:
        """Ask the proxy's admin port until the answer is as wanted."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    if wanted(*await self.get(ADMIN, path)):
                        return
                except aiohttp.ClientError:
                    assert self._proxy is None or self._proxy.poll() is None, self.log()
                await asyncio.sleep(0.05)

    def log(self) -> str:
        return (self.directory / "proxy.log").read_text()

    def listen(self, port: int, host: str = "0.0.0.0") -> socket.socket:
        """A listening socket in the pod, for an app that lives in the test."""
        return self.namespace.call(lambda: socket.create_server((host, port)))


@dataclass
class Town:
    """Two pods and a client outside of the mesh, on one network, and the control plane of the proxies."""

    a: Pod
    b: Pod
    outside: Namespace
    control: ControlPlane
    links: tuple[tuple[str, str], tuple[str, str]]
    """The interfaces between a and b, and between outside and b."""


@asynccontextmanager
async def meshed(
    first: Workload,
    second: Workload,
    *,
    rules: Rules | None = None,
    transport_header: bool = True,
    lifetime: float = 86400,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Town]:
    """Two injected pods, at the addresses of their workloads (10.77.0.0/24), and a namespace without Linkerd at
    10.77.1.9, for which the second pod is 10.77.1.2. `environment` is added to the proxies'."""
    control = ControlPlane(first, second, transport_header=transport_header, lifetime=lifetime)
    async with AsyncExitStack() as stack:
        a, b, outside = stack.enter_context(pods("a", "b", "outside"))
        ab = link(a, b, [f"{first.address}/24"], [f"{second.address}/24"])
        ob = link(outside, b, ["10.77.1.9/24"], ["10.77.1.2/24"])
        made = []
        for namespace, workload in ((a, first), (b, second)):
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="mm-")))
            server = control.server()
            await server.start(sock=namespace.call(lambda: socket.create_server(("127.0.0.1", _CONTROL_PORT))))
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            settings = _environment(workload, directory, control.anchors) | {
                f"LINKERD2_PROXY_{name}": value for name, value in (environment or {}).items()
            }
            install(namespace, rules)
            binary = os.environ.get("LINKERD2_PROXY_BIN")  # noqa: TID251 - a test's own environment
            pod = Pod(namespace, workload, directory, settings, binary)
            made.append(pod)
        await asyncio.gather(*(pod.start_proxy() for pod in made))
        yield Town(made[0], made[1], outside, control, (ab, ob))


def _environment(workload: Workload, directory: Path, anchors: str) -> dict[str, str]:
    """What the injector gives a proxy, with timeouts that suit a test."""
    _write_identity(workload, directory)
    control = f"127.0.0.1:{_CONTROL_PORT}"
    settings = {
        "IDENTITY_SVC_ADDR": control,
        "DESTINATION_SVC_ADDR": control,
        "POLICY_SVC_ADDR": control,
        "POLICY_WORKLOAD": json.dumps({"ns": "test", "pod": workload.name}),
        "DESTINATION_CONTEXT": json.dumps({"ns": "test", "pod": workload.name}),
        "DESTINATION_PROFILE_NETWORKS": "10.0.0.0/8",
        "POLICY_CLUSTER_NETWORKS": "10.0.0.0/8",
        "IDENTITY_DIR": str(directory),
        "IDENTITY_TRUST_ANCHORS": anchors,
        "IDENTITY_TOKEN_FILE": str(directory / "token"),
        "IDENTITY_LOCAL_NAME": workload.identity,
        "INBOUND_LISTEN_ADDR": "0.0.0.0:4143",
        "OUTBOUND_LISTEN_ADDR": "127.0.0.1:4140",
        "ADMIN_LISTEN_ADDR": "0.0.0.0:4191",
        "INBOUND_DEFAULT_POLICY": workload.default_policy,
        "INBOUND_CONNECT_TIMEOUT": "5s",  # 0.1 s and 1 s in a cluster; other tests run beside this one
        "OUTBOUND_CONNECT_TIMEOUT": "5s",
        "SHUTDOWN_GRACE_PERIOD": "1s",
    }
    if workload.opaque:
        settings["INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION"] = ",".join(map(str, sorted(workload.opaque)))
    return {f"LINKERD2_PROXY_{name}": value for name, value in settings.items()}


def _write_identity(workload: Workload, directory: Path) -> None:
    """What the wrapper linkerd2-proxy-identity makes before it starts the proxy: a key and a request for its name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, workload.identity)])
    names = x509.SubjectAlternativeName([x509.DNSName(workload.identity)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    files = {
        "key.p8": key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        "csr.der": csr.sign(key, SHA256()).public_bytes(Encoding.DER),
        "token": b"token",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
        os.chown(directory / name, PROXY_UID, PROXY_UID)
    os.chown(directory, PROXY_UID, PROXY_UID)


def connector_in(namespace: Namespace) -> aiohttp.TCPConnector:
    """For an HTTP client that connects from within a namespace."""

    def make(_info: object) -> socket.socket:
        sock = namespace.socket()
        sock.setblocking(False)
        return sock

    return aiohttp.TCPConnector(socket_factory=make)
