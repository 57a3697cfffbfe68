# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's settings: a frozen value made from a mapping of environment variables.

Command line flags are the same settings under other names (`--mesh-addr` is `EDG_COORDINATOR_MESH_ADDR`), laid over the
environment before this file sees it, so there is one parser and one set of messages. An empty value counts as unset.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sds.attestation.errors import Malformed
from sds.attestation.simulated import SimulatedEnclave

MESH_ADDR = "EDG_COORDINATOR_MESH_ADDR"
CLIENT_ADDR = "EDG_COORDINATOR_CLIENT_ADDR"
XDS_ADDR = "EDG_COORDINATOR_XDS_ADDR"
PROMETHEUS_ADDR = "EDG_COORDINATOR_PROMETHEUS_ADDR"
DNS_NAMES = "EDG_COORDINATOR_DNS_NAMES"
SEAL_DIR = "EDG_COORDINATOR_SEAL_DIR"
STARTUP_MANIFEST = "EDG_STARTUP_MANIFEST"
DEV_MODE = "EDG_COORDINATOR_DEV_MODE"
DEBUG_LOGGING = "EDG_DEBUG_LOGGING"
HTTP_ERROR_LOG_LEVEL = "EDG_HTTP_ERROR_LOG_LEVEL"
CWD = "EDG_CWD"
SIMULATION = "EDG_COORDINATOR_SIMULATION"
INSECURE = "EDG_COORDINATOR_INSECURE_NO_ATTESTATION"
SIMULATED_PLATFORM = "EDG_SIMULATED_PLATFORM_DIR"
SIMULATED_ENCLAVE = "EDG_SIMULATED_ENCLAVE"
PLATFORM = "EDG_ATTESTATION_PLATFORM"
PCCS_URL = "EDG_PCCS_URL"
COLLATERAL_DIR = "EDG_COLLATERAL_DIR"

FLAGS = {
    MESH_ADDR: "--mesh-addr",
    CLIENT_ADDR: "--client-addr",
    XDS_ADDR: "--xds-addr",
    PROMETHEUS_ADDR: "--prometheus-addr",
    DNS_NAMES: "--dns-names",
    SEAL_DIR: "--seal-dir",
    STARTUP_MANIFEST: "--startup-manifest",
    DEV_MODE: "--dev-mode",
    DEBUG_LOGGING: "--debug-logging",
    HTTP_ERROR_LOG_LEVEL: "--http-error-log-level",
    SIMULATION: "--simulation",
    INSECURE: "--insecure-no-attestation",
    SIMULATED_PLATFORM: "--simulated-platform",
    SIMULATED_ENCLAVE: "--simulated-enclave",
    PLATFORM: "--platform",
    PCCS_URL: "--pccs-url",
    COLLATERAL_DIR: "--collateral-dir",
}

STATE_DIR = "marblerun-coordinator-data"

_LOG_LEVELS = ("debug", "info", "warn", "error")
_YES = {"1": True, "0": False, "true": True, "false": False}
_MAX_NAMES = 64  # every name is in three certificates; a certificate message of TLS is limited to 100 KiB by clients


class ConfigError(ValueError):
    """A setting is wrong; the text names flag and variable, what was seen and what is expected."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen. An empty host is every address of the machine, port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Everything that can be set; what a member means is said in the command's help."""

    mesh_addr: ListenAddress
    client_addr: ListenAddress
    xds_addr: ListenAddress
    prometheus_addr: ListenAddress | None
    dns_names: tuple[str, ...]
    ip_addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]
    seal_dir: Path
    startup_manifest: Path | None
    dev_mode: bool
    debug_logging: bool
    http_error_log_level: str
    simulation: bool
    insecure: bool
    simulated_platform: Path | None
    simulated_enclave: SimulatedEnclave | None
    platform: str
    pccs_url: str | None
    collateral_dir: Path | None

    @property
    def mark(self) -> str:
        """What every log line has to say about attestation; empty in production."""
        return "simulation" if self.simulation else "insecure" if self.insecure else ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> CoordinatorConfig:
        """Read and check all settings; raises ConfigError for the first that is wrong."""
        dns_names, ip_addresses = _names(env.get(DNS_NAMES) or "localhost")
        config = cls(
            mesh_addr=_address(env, MESH_ADDR, ":2001"),
            client_addr=_address(env, CLIENT_ADDR, ":4433"),
            xds_addr=_address(env, XDS_ADDR, ":18000"),
            prometheus_addr=_address(env, PROMETHEUS_ADDR, "") if env.get(PROMETHEUS_ADDR) else None,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            # As MarbleRun: inside an enclave the host's working directory comes by variable.
            seal_dir=_path(env, SEAL_DIR) or (_path(env, CWD) or Path.cwd()) / STATE_DIR,
            startup_manifest=_path(env, STARTUP_MANIFEST),
            dev_mode=_switch(env, DEV_MODE),
            debug_logging=_switch(env, DEBUG_LOGGING),
            http_error_log_level=_log_level(env),
            simulation=_switch(env, SIMULATION),
            insecure=_switch(env, INSECURE),
            simulated_platform=_path(env, SIMULATED_PLATFORM),
            simulated_enclave=_enclave(env),
            platform=_platform(env),
            pccs_url=_url(env, PCCS_URL),
            collateral_dir=_path(env, COLLATERAL_DIR),
        )
        _check_together(config)
        return config


def named(variable: str) -> str:
    """A setting as people know it: flag and variable."""
    return f"{FLAGS[variable]} ({variable})"


def _check_together(config: CoordinatorConfig) -> None:
    if config.pccs_url and config.collateral_dir:
        raise ConfigError(f"{named(PCCS_URL)} and {named(COLLATERAL_DIR)} exclude each other: give one")
    if config.insecure and config.simulation:
        raise ConfigError(f"{named(INSECURE)} and {named(SIMULATION)} exclude each other: simulation attests, give one")
    if config.simulation:
        return
    # A production Coordinator must not look as if these had an effect.
    for variable, value in (
        (SIMULATED_PLATFORM, config.simulated_platform),
        (SIMULATED_ENCLAVE, config.simulated_enclave),
    ):
        if value is not None:
            raise ConfigError(f"{named(variable)} is set without {named(SIMULATION)}: add the one or drop the other")


def _address(env: Mapping[str, str], variable: str, default: str) -> ListenAddress:
    text = env.get(variable) or default
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigError(f"{named(variable)}: want host:port or :port, got {text[:120]!r}")
    return ListenAddress(host, int(port))


def _names(text: str) -> tuple[tuple[str, ...], tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]]:
    dns_names: list[str] = []
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    entries = text.split(",")
    if len(entries) > _MAX_NAMES:
        raise ConfigError(f"{named(DNS_NAMES)}: at most {_MAX_NAMES} names, got {len(entries)}")
    for entry in entries:
        try:
            addresses.append(ipaddress.ip_address(entry))
        except ValueError:
            if not entry or len(entry) > 253 or not entry.isascii() or any(c.isspace() for c in entry):
                raise ConfigError(
                    f"{named(DNS_NAMES)}: want names and IP addresses separated by commas without blanks, "
                    f"got {text[:120]!r}"
                ) from None
            dns_names.append(entry)
    return tuple(dns_names), tuple(addresses)


def _switch(env: Mapping[str, str], variable: str) -> bool:
    text = (env.get(variable) or "0").lower()
    if text not in _YES:
        raise ConfigError(f"{named(variable)}: want 1 or 0, got {text[:40]!r}")
    return _YES[text]


def _log_level(env: Mapping[str, str]) -> str:
    # An invalid level means "error", as MarbleRun has it: a typo must not keep a Coordinator from starting.
    text = (env.get(HTTP_ERROR_LOG_LEVEL) or "error").lower()
    return text if text in _LOG_LEVELS else "error"


def _path(env: Mapping[str, str], variable: str) -> Path | None:
    text = env.get(variable)
    if text and "\0" in text:
        raise ConfigError(f"{named(variable)}: a path has no NUL character")
    return Path(text) if text else None


def _enclave(env: Mapping[str, str]) -> SimulatedEnclave | None:
    text = env.get(SIMULATED_ENCLAVE)
    if not text:
        return None
    try:
        return SimulatedEnclave.from_json(text)
    except Malformed as e:
        raise ConfigError(f"{named(SIMULATED_ENCLAVE)}: {e}") from None


def _platform(env: Mapping[str, str]) -> str:
    text = env.get(PLATFORM) or "auto"
    if text != "auto" and text.partition(":")[0] not in ("gramine", "tdx"):
        raise ConfigError(f"{named(PLATFORM)}: want auto, gramine[:DIR] or tdx[:DIR], got {text[:120]!r}")
    return text


def _url(env: Mapping[str, str], variable: str) -> str | None:
    text = env.get(variable) or None
    if text is not None and not text.startswith(("https://", "http://")):
        raise ConfigError(f"{named(variable)}: want https://host[:port][/path], got {text[:120]!r}")
    return text
