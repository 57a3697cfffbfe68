# SPDX-License-Identifier: Apache-2.0
"""Which processes the demo is made of: from ports and paths to commands, environments and the manifest. Pure.

vote-bot -> its worker =mTLS=> edge Envoy (ciphertext) => Envoy inside web -> web -> that Envoy =mTLS=> the workers of
emoji and voting -> their apps. `->` is a UNIX socket, `=>` TCP on loopback; only ciphertext crosses the latter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from marblemesh.demo.envoy_binary import FLAGS
from marblemesh.demo.envoy_config import Edge, Endpoint
from marblemesh.demo.errors import DemoError
from marblemesh.demo.prometheus_config import Target
from sds.attestation.simulated import SIMULATED_SIGNER

HOST = "127.0.0.1"
# In the order in which they are started: who is asked before who asks.
MARBLES = ("emoji", "voting", "web", "vote-bot")
# sun_path holds 108 bytes with the final NUL (unix(7)).
MAX_SOCKET_PATH = 107

# The ports of manifests/examples/emojivoto.json, which the demo replaces by free ones.
EXAMPLE_PORTS = {"edge": 18440, "web": 18443, "emoji": 18444, "voting": 18445, "web_stats": 18446}


@dataclass(frozen=True, slots=True)
class Ports:
    """The demo's TCP ports on 127.0.0.1."""

    coordinator_mesh: int
    coordinator_client: int
    coordinator_xds: int
    coordinator_metrics: int
    edge: int
    edge_admin: int
    web: int
    web_stats: int
    emoji: int
    voting: int
    admin_emoji: int
    admin_voting: int
    admin_web: int
    admin_vote_bot: int
    prometheus: int

    @classmethod
    def of(cls, ports: list[int]) -> Self:
        """One port per field, in order; `ports` has `Ports.count()` members."""
        return cls(*ports)

    @classmethod
    def count(cls) -> int:
        return len(fields(cls))

    def admin(self, marble: str) -> int:
        """The admin port of a Marble's worker."""
        port: int = getattr(self, f"admin_{marble.replace('-', '_')}")
        return port

    def mesh(self) -> dict[str, int]:
        """The ports that carry the app's traffic: nothing but ciphertext may be seen on them."""
        return {"edge": self.edge, "web": self.web, "emoji": self.emoji, "voting": self.voting}


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of the demo, all below the state directory. `run` is removed at the end, `logs` stays."""

    state: Path

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def platform(self) -> Path:
        return self.run / "platform"

    @property
    def coordinator(self) -> Path:
        """The Coordinator's sealed state."""
        return self.run / "coordinator"

    @property
    def era_config(self) -> Path:
        return self.run / "era-config.json"

    def marble(self, name: str) -> Path:
        """A worker's working and run directory."""
        return self.run / name

    @property
    def edge(self) -> Path:
        return self.run / "edge"

    @property
    def prometheus(self) -> Path:
        return self.run / "prometheus"

    def check_socket_lengths(self) -> None:
        """Raises DemoError when a UNIX socket below the state directory would have too long a path."""
        # The longest name that anybody gives in there is the one that a worker's own limit is made for.
        names = (self.marble(name) / "sds.sock.lock" for name in MARBLES)
        longest = max(names, key=lambda path: len(os.fsencode(path)))
        if (length := len(os.fsencode(longest))) > MAX_SOCKET_PATH:
            raise DemoError(
                f"the UNIX socket {longest} would have a path of {length} bytes, the system allows {MAX_SOCKET_PATH}: "
                f"give a shorter directory with --state-dir"
            )


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start. `env` is its whole environment."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path


@dataclass(frozen=True, slots=True)
class Topology:
    """The demo's processes on given ports and paths.

    `base_env` is what every process inherits; `manifest_fingerprint` (hex) what the workers insist on.
    """

    ports: Ports
    paths: Paths
    python: str
    base_env: Mapping[str, str]
    manifest_fingerprint: str

    def coordinator(self) -> Command:
        p = self.ports
        env = {
            "EDG_COORDINATOR_MESH_ADDR": f"{HOST}:{p.coordinator_mesh}",
            "EDG_COORDINATOR_CLIENT_ADDR": f"{HOST}:{p.coordinator_client}",
            "EDG_COORDINATOR_XDS_ADDR": f"{HOST}:{p.coordinator_xds}",
            "EDG_COORDINATOR_PROMETHEUS_ADDR": f"{HOST}:{p.coordinator_metrics}",
            "EDG_COORDINATOR_DNS_NAMES": "localhost",
            "EDG_COORDINATOR_SEAL_DIR": str(self.paths.coordinator),
            "EDG_COORDINATOR_SIMULATION": "1",
            "EDG_SIMULATED_PLATFORM_DIR": str(self.paths.platform),
        }
        return self._program("coordinator", ("coordinator",), env, self.paths.run)

    def worker(self, marble: str, votes: int = 0, rate: float = 0) -> Command:
        """The worker of a Marble, which starts the app. `votes` and `rate` are vote-bot's alone."""
        p = self.ports
        env = {
            "EDG_MARBLE_TYPE": marble,
            "EDG_MARBLE_COORDINATOR_ADDR": f"{HOST}:{p.coordinator_mesh}",
            "EDG_COORDINATOR_CLIENT_ADDR": f"{HOST}:{p.coordinator_client}",
            "EDG_MARBLE_XDS_ADDR": f"{HOST}:{p.coordinator_xds}",
            "EDG_MARBLE_DNS_NAMES": f"{marble},{HOST}",
            "EDG_MARBLE_ADVERTISE": HOST,
            "EDG_MARBLE_UUID_FILE": str(self.paths.marble(marble) / "uuid"),
            "EDG_MARBLE_RUN_DIR": str(self.paths.marble(marble)),
            "EDG_MARBLE_ADMIN_ADDR": f"{HOST}:{p.admin(marble)}",
            "EDG_MARBLE_ERA_CONFIG": str(self.paths.era_config),
            "EDG_MARBLE_MANIFEST_FINGERPRINT": self.manifest_fingerprint,
            "EDG_MARBLE_SIMULATION": "1",
            "EDG_SIMULATED_PLATFORM_DIR": str(self.paths.platform),
            "EDG_SIMULATED_ENCLAVE": json.dumps(simulated_enclave(marble)),
        }
        flags: tuple[str, ...] = ()
        match marble:
            case "web":
                module, flags = "marblemesh.demo.web_with_envoy", ("--relay", "off")
            case "vote-bot":
                module = "marblemesh.demo.emojivoto.vote_bot"
                env |= {"VOTES": str(votes), "RATE": str(rate)}
            case _:
                module = f"marblemesh.demo.emojivoto.{marble}"
        argv = ("proxy", "run", *flags, "--", self.python, "-m", module)
        return self._program(marble, argv, env, self.paths.marble(marble))

    def edge(self, envoy: Path) -> Command:
        argv = (str(envoy), *FLAGS, "--config-path", str(self.paths.edge / "envoy.json"))
        return Command("edge", argv, self.base_env, self.paths.edge)

    def edge_config(self) -> Edge:
        p, directory = self.ports, self.paths.edge
        return Edge(
            listen=Endpoint(HOST, p.edge),
            marble_type="web",
            port=p.web,
            xds=Endpoint(HOST, p.coordinator_xds),
            certificate=directory / "certificate.pem",
            key=directory / "key.pem",
            coordinator_root=directory / "coordinator-root.pem",
            admin=Endpoint(HOST, p.edge_admin),
        )

    def prometheus(self, binary: str) -> Command:
        directory = self.paths.prometheus
        argv = (
            binary,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={HOST}:{self.ports.prometheus}",
            "--log.level=warn",
        )
        return Command("prometheus", argv, self.base_env, directory)

    def targets(self) -> list[Target]:
        """What Prometheus scrapes."""
        p = self.ports
        return [
            Target("coordinator", f"{HOST}:{p.coordinator_metrics}"),
            *(Target(f"worker-{marble}", f"{HOST}:{p.admin(marble)}") for marble in MARBLES),
            Target("envoy-web", f"{HOST}:{p.web_stats}", "/stats/prometheus"),
            Target("envoy-edge", f"{HOST}:{p.edge_admin}", "/stats/prometheus"),
        ]

    def _program(self, name: str, argv: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Command:
        return Command(name, (self.python, "-m", "marblemesh", *argv), {**self.base_env, **env}, cwd)


# What a child needs of our environment; the rest (EDG_*, proxies, credentials of other programs) is not its business.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")


def base_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The part of `env` that the demo's processes inherit."""
    return {name: env[name] for name in _INHERITED if name in env} | {"PYTHONUNBUFFERED": "1"}


def simulated_enclave(marble: str) -> dict[str, object]:
    """What the simulated quote of a Marble says; ProductID and signer are those of the example manifest's packages."""
    return {
        "UniqueID": hashlib.sha256(f"marblemesh simulated enclave {marble}".encode()).hexdigest(),
        "SignerID": SIMULATED_SIGNER.hex(),
        "ProductID": {"web": 11, "emoji": 12, "voting": 13, "vote-bot": 14}[marble],
        "SecurityVersion": 1,
        "Debug": False,
    }


def era_config() -> dict[str, object]:
    """Whom the data owner takes for a Coordinator: the simulated one, by signer, product and version."""
    return {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 3, "SecurityVersion": 3}


def demo_manifest(example: str, ports: Ports, gateway_certificate: str) -> str:
    """The example manifest with these ports and this gateway certificate in place of the example's."""
    new = {str(old): str(getattr(ports, name)) for name, old in EXAMPLE_PORTS.items()}
    port = re.compile(r"\b(" + "|".join(new) + r")\b")

    def swapped(value: object) -> object:
        return port.sub(lambda found: new[found[0]], value) if isinstance(value, str) else value

    def with_ports(members: dict[str, object]) -> dict[str, object]:
        # The parser comes from inside out: objects in here are done, and a new port must not be swapped once more.
        return {
            key: [swapped(item) for item in value] if isinstance(value, list) else swapped(value)
            for key, value in members.items()
        }

    # The certificate goes in last: among its base64 text a port number may stand.
    manifest = json.loads(example, object_hook=with_ports)
    manifest["Mesh"]["Gateways"]["edge"]["Certificate"] = gateway_certificate
    return json.dumps(manifest, indent=2)
