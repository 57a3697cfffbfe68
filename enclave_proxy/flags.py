# SPDX-License-Identifier: Apache-2.0
"""What can be written on a worker's command line."""

from __future__ import annotations

from enclave_proxy import capture_settings
from enclave_proxy import config as settings
from enclave_proxy.setting import Setting
from sds.flags import Flag

ABOUT = """
Prove this Marble to the Coordinator, start CMD, and carry its traffic in mTLS.

SIGTERM, SIGINT and SIGQUIT end it in order: not ready any more and nothing new accepted, peers' connections end by
themselves (--drain), then the app is told and ends (--app-grace). A second signal ends the stage that it is in.

The app's own program comes from the manifest (Parameters.Argv) if it has one there, else it is CMD. Exits with the
app's status (128+n if signal n killed it); 2 for wrong settings, 127 if there is no such program, 1 for the rest.
"""


def _option(setting: Setting, text: str, metavar: str) -> Flag:
    return Flag(f"--{setting.flag}", setting.flag, f"{text} [{setting.env}]", metavar)


def _switch(setting: Setting, text: str) -> Flag:
    return Flag(f"--{setting.flag}", setting.flag, f"{text} [{setting.env}]")


FLAGS = (
    _option(settings.MARBLE_TYPE, "This Marble's name in the manifest.", "NAME"),
    _option(settings.COORDINATOR, "Marble API, localhost:2001.", "HOST:PORT"),
    _option(settings.DNS_NAMES, "Own names and IPs, localhost.", "NAMES"),
    _option(settings.UUID_FILE, "Who this instance is, ./uuid.", "FILE"),
    _option(settings.XDS, "xDS, port 18000 of the Coordinator.", "HOST:PORT"),
    _option(settings.CLIENT_API, "Client API (pins), port 4433.", "HOST:PORT"),
    _option(settings.ERA_CONFIG, "Attest the Coordinator against this.", "FILE"),
    _option(settings.FINGERPRINT, "The manifest it must run.", "HEX"),
    _option(settings.ADVERTISE, "Where peers find this Marble.", "NAME|IP"),
    _option(settings.RUN_DIR, "Where sockets lie.", "DIR"),
    _option(settings.SDS_SOCKET, "DIR/sds.sock, or off.", "PATH"),
    _option(settings.WORKLOAD_SOCKET, "SPIFFE Workload API and SDS, DIR/workload.sock, or off.", "PATH"),
    _option(settings.SOCKET_MODE, "Of both sockets, 0600.", "MODE"),
    _option(settings.SOCKET_OWNER, "Of both sockets.", "UID"),
    _option(settings.SOCKET_GROUP, "Of both sockets.", "GID"),
    _option(settings.SOCKET_UIDS, "Who may connect besides the worker's own user.", "UIDS"),
    _option(settings.SOCKET_GIDS, "The same, by group.", "GIDS"),
    _option(settings.ADMIN, "127.0.0.1:15090, or off.", "HOST:PORT"),
    _option(settings.RELAY, "off: a co-located Envoy carries the data.", "on|off"),
    _option(settings.CONCURRENCY, "Processes that relay, 1; under SGX never more.", "N"),
    _option(settings.LIMITS, "The relay's bounds, such as handshake-timeout=5,connections=16000.", "NAME=N,..."),
    _option(settings.RESTART, "When the app ends: never (default), on-failure or always.", "POLICY"),
    _option(settings.APP_TIMEOUT, "Readiness waits for the app to listen, 30; 0: not.", "SECONDS"),
    _option(settings.DRAIN, "On SIGTERM: for peers' connections to end, 10.", "SECONDS"),
    _option(settings.APP_GRACE, "After that: the app, from SIGTERM to SIGKILL, 10.", "SECONDS"),
    _option(settings.OFFLINE_STATE, "Sealed, for a start without Coordinator, UUID_FILE.offline.", "FILE"),
    _option(settings.OFFLINE_AFTER, "Ask the Coordinator for so long before that, 10.", "SECONDS"),
    _option(settings.ACCESS_LOG, "A line of JSON for each connection, off; - is stdout.", "FILE|-"),
    _option(capture_settings.CAPTURE, "Redirect the app's plain TCP, off; not in SGX.", "off|nft|iptables|auto"),
    _option(capture_settings.APP_USER, "Whom the app runs as, the worker's own.", "UID[:GID]"),
    _option(capture_settings.PROXIES, "Other meshes' proxies: users, 2102 (Linkerd).", "UIDS|none"),
    _switch(settings.FUSED, "Run CMD, a Python program, in the worker's own process."),
    _switch(settings.SIMULATION, "No TEE: quotes prove nothing."),
    _option(settings.SIMULATED_PLATFORM, "Its state.", "DIR"),
    _option(settings.SIMULATED_ENCLAVE, "What to pretend.", "JSON"),
    _option(settings.PLATFORM, "auto, gramine[:DIR] or tdx[:DIR].", "KIND"),
    _option(settings.PCCS_URL, "Collateral, to attest the Coordinator.", "URL"),
    _option(settings.COLLATERAL_DIR, "The same, from files.", "DIR"),
    _option(settings.LOG_FORMAT, "json or text.", "FORMAT"),
    _option(settings.LOG_LEVEL, "debug, info, warning or error.", "LEVEL"),
    _switch(settings.DEBUG, "The same as --log-level debug."),
)
