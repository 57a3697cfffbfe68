# SPDX-License-Identifier: Apache-2.0
"""The worker's settings: one frozen value, made from flags and an environment mapping, with every error at once.

A flag wins over its variable; an empty value counts as not set (container templates set empty variables all the time).
The first four variables are MarbleRun's, so a Marble's existing deployment starts this worker unchanged.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

from enclave_proxy.access_log import parse_destination
from enclave_proxy.capture_settings import CAPTURE, CaptureSettings, read_capture
from enclave_proxy.errors import ConfigError
from enclave_proxy.lifecycle_settings import (
    DEFAULT_APP_GRACE,
    DEFAULT_APP_TIMEOUT,
    DEFAULT_DRAIN,
    DEFAULT_OFFLINE_AFTER,
    LifecycleSettings,
    parse_concurrency,
    parse_restart,
    parse_seconds,
)
from enclave_proxy.limit_settings import parse_limits
from enclave_proxy.limits import Limits
from enclave_proxy.local_path import MAX_PATH, MODE
from enclave_proxy.restarts import RestartPolicy
from enclave_proxy.setting import Setting as Setting
from enclave_proxy.socket_settings import SocketSettings, parse_id, parse_ids, parse_mode

T = TypeVar("T")

DEFAULT_MARBLE_API_PORT = 2001
DEFAULT_CLIENT_API_PORT = 4433
DEFAULT_XDS_PORT = 18000

# sun_path holds 108 bytes with its final NUL; the longest socket name that the worker itself adds:
MAX_RUN_DIR = MAX_PATH - len("/workload.sock")

_HOST = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9_.])?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address as people write it; `str()` gives it back with IPv6 in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, lowest_port: int = 1) -> Self:
        """`host:port` or `[v6]:port`. Raises ValueError saying what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise ValueError(f"{text!r} is not host:port")
        if not lowest_port <= int(port) <= 65535:
            raise ValueError(f"port {port} is not within {lowest_port}..65535")
        if host.startswith("[") and host.endswith("]"):
            return cls(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name or IP address (write IPv6 as [::1]:{port})")
        return cls(host, int(port))


DEFAULT_ADMIN: HostPort | None = HostPort("127.0.0.1", 15090)


MARBLE_TYPE = Setting("EDG_MARBLE_TYPE", "marble-type")
COORDINATOR = Setting("EDG_MARBLE_COORDINATOR_ADDR", "coordinator-addr")
DNS_NAMES = Setting("EDG_MARBLE_DNS_NAMES", "dns-names")
UUID_FILE = Setting("EDG_MARBLE_UUID_FILE", "uuid-file")
XDS = Setting("EDG_MARBLE_XDS_ADDR", "xds-addr")
CLIENT_API = Setting("EDG_COORDINATOR_CLIENT_ADDR", "client-addr")
ERA_CONFIG = Setting("EDG_MARBLE_ERA_CONFIG", "era-config")
FINGERPRINT = Setting("EDG_MARBLE_MANIFEST_FINGERPRINT", "manifest-fingerprint")
ADVERTISE = Setting("EDG_MARBLE_ADVERTISE", "advertise")
RUN_DIR = Setting("EDG_MARBLE_RUN_DIR", "run-dir")
SDS_SOCKET = Setting("EDG_MARBLE_SDS_SOCKET", "sds-socket")
WORKLOAD_SOCKET = Setting("EDG_MARBLE_WORKLOAD_SOCKET", "workload-socket")
SOCKET_MODE = Setting("EDG_MARBLE_SOCKET_MODE", "socket-mode")
SOCKET_OWNER = Setting("EDG_MARBLE_SOCKET_OWNER", "socket-owner")
SOCKET_GROUP = Setting("EDG_MARBLE_SOCKET_GROUP", "socket-group")
SOCKET_UIDS = Setting("EDG_MARBLE_SOCKET_ALLOW_UIDS", "socket-allow-uids")
SOCKET_GIDS = Setting("EDG_MARBLE_SOCKET_ALLOW_GIDS", "socket-allow-gids")
ADMIN = Setting("EDG_MARBLE_ADMIN_ADDR", "admin-addr")
RELAY = Setting("EDG_MARBLE_RELAY", "relay")
DRAIN = Setting("EDG_MARBLE_DRAIN", "drain")
APP_GRACE = Setting("EDG_MARBLE_APP_GRACE", "app-grace")
APP_TIMEOUT = Setting("EDG_MARBLE_APP_TIMEOUT", "app-timeout")
RESTART = Setting("EDG_MARBLE_RESTART", "restart")
CONCURRENCY = Setting("EDG_MARBLE_CONCURRENCY", "concurrency")
LIMITS = Setting("EDG_MARBLE_LIMITS", "limits")
OFFLINE_STATE = Setting("EDG_MARBLE_OFFLINE_STATE", "offline-state")
OFFLINE_AFTER = Setting("EDG_MARBLE_OFFLINE_AFTER", "offline-after")
ACCESS_LOG = Setting("EDG_MARBLE_ACCESS_LOG", "access-log")
FUSED = Setting("EDG_MARBLE_FUSED", "fused")
SIMULATION = Setting("EDG_MARBLE_SIMULATION", "simulation")
SIMULATED_PLATFORM = Setting("EDG_SIMULATED_PLATFORM_DIR", "simulated-platform")
SIMULATED_ENCLAVE = Setting("EDG_SIMULATED_ENCLAVE", "simulated-enclave")
PLATFORM = Setting("EDG_ATTESTATION_PLATFORM", "platform")
PCCS_URL = Setting("EDG_PCCS_URL", "pccs-url")
COLLATERAL_DIR = Setting("EDG_COLLATERAL_DIR", "collateral-dir")
LOG_FORMAT = Setting("EDG_LOG_FORMAT", "log-format")
LOG_LEVEL = Setting("EDG_LOG_LEVEL", "log-level")
DEBUG = Setting("EDG_DEBUG_LOGGING", "debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Everything a worker is told from outside. Made by `load`; nothing else reads flags or the environment."""

    marble_type: str
    coordinator: HostPort
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    uuid_file: Path
    xds: HostPort
    client_api: HostPort
    era_config: Path | None
    manifest_fingerprint: str | None
    advertise: str
    run_dir: Path
    sockets: SocketSettings
    admin: HostPort | None
    relay: bool
    lifecycle: LifecycleSettings
    concurrency: int  # processes that relay, this one among them
    limits: Limits
    access_log: str | None  # a path, or "-"
    fused: bool
    capture: CaptureSettings
    offline_state: Path
    simulation: bool
    simulated_platform: Path | None  # None: the user's default
    simulated_enclave: str | None  # JSON; None: derived from the marble type
    platform: str
    pccs_url: str | None
    collateral_dir: Path | None
    log_format: Literal["json", "console"]
    log_level: str
    command: tuple[str, ...]

    @property
    def pinned(self) -> bool:
        """Is the Coordinator attested before anything is asked of it?"""
        return self.era_config is not None

    @classmethod
    def load(
        cls, env: Mapping[str, str], flags: Mapping[str, str], command: Sequence[str], *, cwd: Path, runtime_dir: Path
    ) -> Self:
        """Read everything; raise one ConfigError that lists all problems. `runtime_dir`: where run directories go."""
        reader = _Reader(env, flags)
        config = _read(reader, tuple(command), cwd, runtime_dir)
        reader.finish()
        return cast(Self, config)


class _Reader:
    """Looks settings up and collects what is wrong with them, so that an operator fixes all of it in one go."""

    def __init__(self, env: Mapping[str, str], flags: Mapping[str, str]) -> None:
        self._env = env
        self._flags = flags
        self._problems: list[str] = []

    def text(self, setting: Setting) -> str | None:
        return self._flags.get(setting.flag) or self._env.get(setting.env) or None

    def value(self, setting: Setting, default: T, parse: Callable[[str], T]) -> T:
        text = self.text(setting)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problem(setting, str(error))
            return default

    def problem(self, setting: Setting, what: str) -> None:
        self._problems.append(f"{setting.names}: {what}")

    def finish(self) -> None:
        if self._problems:
            raise ConfigError("; ".join(self._problems))


def _read(reader: _Reader, command: tuple[str, ...], cwd: Path, runtime_dir: Path) -> WorkerConfig:
    marble_type = reader.value(MARBLE_TYPE, "", _name)
    if reader.text(MARBLE_TYPE) is None:
        reader.problem(MARBLE_TYPE, "is not set; give the Marble's name in the manifest")
    coordinator = reader.value(COORDINATOR, HostPort("localhost", DEFAULT_MARBLE_API_PORT), HostPort.parse)
    own_names: tuple[str, ...] = ("localhost",)
    names = reader.value(DNS_NAMES, own_names, _names)
    dns_names = tuple(name for name in names if not _is_ip(name))
    addresses = tuple(dict.fromkeys(("127.0.0.1", "::1", *(name for name in names if _is_ip(name)))))
    uuid_file = cwd / reader.value(UUID_FILE, Path("uuid"), Path)
    run_dir = cwd / reader.value(RUN_DIR, runtime_dir / re.sub(r"[^-A-Za-z0-9_.]", "_", marble_type), Path)
    config = WorkerConfig(
        marble_type=marble_type,
        coordinator=coordinator,
        dns_names=dns_names,
        ip_addresses=addresses,
        uuid_file=uuid_file,
        xds=reader.value(XDS, HostPort(coordinator.host, DEFAULT_XDS_PORT), HostPort.parse),
        client_api=reader.value(CLIENT_API, HostPort(coordinator.host, DEFAULT_CLIENT_API_PORT), HostPort.parse),
        era_config=reader.value(ERA_CONFIG, None, _existing_file),
        manifest_fingerprint=reader.value(FINGERPRINT, None, _fingerprint),
        # A wildcard is a fine DNS SAN, though nothing that anybody could connect to.
        advertise=reader.value(ADVERTISE, next((name for name in names if name[0] != "*"), "localhost"), _host),
        run_dir=run_dir,
        sockets=_sockets(reader, cwd, run_dir),
        admin=reader.value(ADMIN, DEFAULT_ADMIN, _admin),
        relay=reader.value(RELAY, True, _switch),
        lifecycle=_lifecycle(reader),
        concurrency=reader.value(CONCURRENCY, 1, parse_concurrency),
        limits=reader.value(LIMITS, Limits(), parse_limits),
        access_log=reader.value(ACCESS_LOG, None, parse_destination),
        fused=reader.value(FUSED, False, _switch),
        capture=read_capture(reader),
        offline_state=cwd / reader.value(OFFLINE_STATE, Path(f"{uuid_file}.offline"), Path),
        simulation=reader.value(SIMULATION, False, _switch),
        simulated_platform=reader.value(SIMULATED_PLATFORM, None, Path),
        simulated_enclave=reader.text(SIMULATED_ENCLAVE),
        platform=reader.value(PLATFORM, "auto", str),
        pccs_url=reader.text(PCCS_URL),
        collateral_dir=reader.value(COLLATERAL_DIR, None, Path),
        log_format=reader.value(LOG_FORMAT, "console", _log_format),
        log_level="debug" if reader.value(DEBUG, False, _switch) else reader.value(LOG_LEVEL, "info", _log_level),
        command=command,
    )
    _cross_check(reader, config)
    return config


def _lifecycle(reader: _Reader) -> LifecycleSettings:
    return LifecycleSettings(
        drain=reader.value(DRAIN, DEFAULT_DRAIN, parse_seconds),
        app_grace=reader.value(APP_GRACE, DEFAULT_APP_GRACE, parse_seconds),
        app_timeout=reader.value(APP_TIMEOUT, DEFAULT_APP_TIMEOUT, parse_seconds),
        restart=reader.value(RESTART, RestartPolicy.NEVER, parse_restart),
        offline_after=reader.value(OFFLINE_AFTER, DEFAULT_OFFLINE_AFTER, parse_seconds),
    )


def _sockets(reader: _Reader, cwd: Path, run_dir: Path) -> SocketSettings:
    def path(setting: Setting, name: str) -> Path | None:
        return None if reader.text(setting) == "off" else cwd / (reader.text(setting) or run_dir / name)

    return SocketSettings(
        sds=path(SDS_SOCKET, "sds.sock"),
        workload=path(WORKLOAD_SOCKET, "workload.sock"),
        mode=reader.value(SOCKET_MODE, MODE, parse_mode),
        owner=reader.value(SOCKET_OWNER, None, parse_id),
        group=reader.value(SOCKET_GROUP, None, parse_id),
        allow_uids=reader.value(SOCKET_UIDS, frozenset(), parse_ids),
        allow_gids=reader.value(SOCKET_GIDS, frozenset(), parse_ids),
    )


def _cross_check(reader: _Reader, config: WorkerConfig) -> None:
    """What is wrong only in combination."""
    if config.manifest_fingerprint is not None and reader.text(ERA_CONFIG) is None:
        reader.problem(
            FINGERPRINT, f"needs {ERA_CONFIG.names}: without attestation anybody can show a manifest that is public"
        )
    if config.pinned and not config.simulation and not (config.pccs_url or config.collateral_dir):
        reader.problem(
            ERA_CONFIG,
            f"needs collateral to verify the Coordinator's quote: give {PCCS_URL.names} or {COLLATERAL_DIR.names}",
        )
    if config.pccs_url and config.collateral_dir:
        reader.problem(PCCS_URL, f"and {COLLATERAL_DIR.names} exclude each other: give one")
    own = {*config.dns_names, *config.ip_addresses}
    if config.advertise not in own:
        reader.problem(
            ADVERTISE, f"{config.advertise!r} is not among this Marble's own names: add it to {DNS_NAMES.names}"
        )
    if len(str(config.run_dir).encode()) > MAX_RUN_DIR:
        reader.problem(
            RUN_DIR, f"{str(config.run_dir)!r} is longer than {MAX_RUN_DIR} bytes, a socket in it could not be named"
        )
    for setting, path in ((SDS_SOCKET, config.sockets.sds), (WORKLOAD_SOCKET, config.sockets.workload)):
        if path is not None and reader.text(setting) is not None and len(os.fsencode(path)) > MAX_PATH:
            reader.problem(setting, f"is longer than {MAX_PATH} bytes, a socket cannot have that name")
    if config.sockets.sds is not None and config.sockets.sds == config.sockets.workload:
        reader.problem(SDS_SOCKET, f"is also {WORKLOAD_SOCKET.names}: the latter serves both, set this one to `off`")
    if (contradiction := config.sockets.contradiction) is not None:
        reader.problem(SOCKET_UIDS if config.sockets.allow_uids else SOCKET_GIDS, contradiction)
    for setting, given in ((CONCURRENCY, config.concurrency > 1), (ACCESS_LOG, config.access_log is not None)):
        if given and not config.relay:
            reader.problem(setting, f"has no use with {RELAY.names} off: there is nothing to relay")
    if config.fused:
        _check_fused(reader, config)
    if (refused := config.capture.contradiction(config.fused, config.relay, config.concurrency)) is not None:
        reader.problem(CAPTURE, refused)
    if config.simulated_enclave is not None and not config.simulation:
        reader.problem(SIMULATED_ENCLAVE, f"is set without {SIMULATION.names}: set that too, or unset this")


def _check_fused(reader: _Reader, config: WorkerConfig) -> None:
    if config.concurrency > 1:
        reader.problem(CONCURRENCY, f"cannot be with {FUSED.names}: worker and app are one process")
    if config.lifecycle.restart is not RestartPolicy.NEVER:
        reader.problem(RESTART, f"cannot be with {FUSED.names}: the app's end is the process's, restart that")
    if not config.relay:
        reader.problem(RELAY, f"cannot be off with {FUSED.names}: nobody would carry the app's sockets")


def _name(text: str) -> str:
    if len(text) > 255 or not text.isprintable():
        raise ValueError("is not a Marble name: at most 255 printable characters")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("names nobody: give a comma-separated list of DNS names and IP addresses")
    return tuple(_host(name) for name in names)


def _host(text: str) -> str:
    if _is_ip(text):
        return str(ipaddress.ip_address(text))
    if not _HOST.fullmatch(text.removeprefix("*.")):
        raise ValueError(f"{text!r} is not a DNS name or IP address")
    return text


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"{text!r} is not a file")
    return path


def _fingerprint(text: str) -> str:
    if not _FINGERPRINT.fullmatch(text.lower()):
        raise ValueError("is not a manifest fingerprint: 64 hexadecimal digits (`marblemesh manifest signature FILE`)")
    return text.lower()


def _admin(text: str) -> HostPort | None:
    return None if text == "off" else HostPort.parse(text, lowest_port=0)


def _switch(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither on nor off")


def _log_format(text: str) -> Literal["json", "console"]:
    # "text" is what MarbleRun's shim calls its default
    match text.lower():
        case "json":
            return "json"
        case "text" | "console":
            return "console"
    raise ValueError(f"{text!r} is not one of json, text")


def _log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(f"{text!r} is not one of debug, info, warning, error")
    return text.lower()
