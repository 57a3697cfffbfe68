# SPDX-License-Identifier: Apache-2.0
"""Transparent capture and the app's own user, as an operator sets them, and whether this process may do either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast, get_args

from enclave_proxy.errors import ConfigError
from enclave_proxy.setting import Setting
from enclave_proxy.socket_settings import parse_id, parse_ids

T = TypeVar("T")
CaptureMode = Literal["off", "nft", "iptables", "auto"]

# What Linkerd's proxy runs as, unless `config.linkerd.io/proxy-uid` says otherwise.
LINKERD = frozenset({2102})
# capability.h. In the order in which a reader understands why.
_NEEDED = {"CAP_SETUID": 7, "CAP_SETGID": 6, "CAP_KILL": 5, "CAP_CHOWN": 0}
_CAP_NET_ADMIN = 12

CAPTURE = Setting("EDG_MARBLE_CAPTURE", "capture")
APP_USER = Setting("EDG_MARBLE_APP_USER", "app-user")
PROXIES = Setting("EDG_MARBLE_CAPTURE_PROXIES", "capture-proxies")


@dataclass(frozen=True, slots=True)
class AppUser:
    """Numbers: the file that says which name has which number may be the host's."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """`app_user` None: the worker's own. `proxies`: users of other meshes' proxies in this network namespace."""

    mode: CaptureMode = "off"
    app_user: AppUser | None = None
    proxies: frozenset[int] = LINKERD

    @property
    def on(self) -> bool:
        """Is anything captured?"""
        return self.mode != "off"

    def contradiction(self, fused: bool, relay: bool, concurrency: int) -> str | None:
        """Why this cannot be with the other settings; None if it can."""
        if fused and (self.on or self.app_user is not None):
            return "and --app-user cannot be with --fused: worker and app are one process, and its sockets are mapped"
        if not self.on:
            return None
        if not relay:
            return "has no use with --relay off: nobody would take what is captured"
        if concurrency > 1:
            return f"cannot be with --concurrency {concurrency}: one process takes what is captured, leave it at 1"
        if self.app_user is None:
            return f"needs {APP_USER.names}: rules tell the app from the worker by its user, give it one"
        if self.app_user.uid in self.proxies:
            return f"would never see an app of user {self.app_user.uid}: --capture-proxies exempts that user"
        if self.app_user.uid == 0:
            return f"needs an app that is not root, which could take the rules away: give {APP_USER.names} another user"
        return None


class Reader(Protocol):
    """What settings are read from."""

    def value(self, setting: Setting, default: T, parse: Callable[[str], T]) -> T:
        """The setting, or its default; what `parse` raises is told with all other problems."""


def read_capture(reader: Reader) -> CaptureSettings:
    """All of them."""
    nobody: AppUser | None = None
    off: CaptureMode = "off"
    return CaptureSettings(
        mode=reader.value(CAPTURE, off, parse_mode),
        app_user=reader.value(APP_USER, nobody, parse_user),
        proxies=reader.value(PROXIES, LINKERD, parse_proxies),
    )


def check_privileges(settings: CaptureSettings, status: str, uid: int, *, sgx: bool) -> None:
    """Refuse what cannot be done here. `status`: /proc/self/status, `uid`: the worker's own user. Raises ConfigError
    that says why and what to do."""
    if settings.on and sgx:
        raise ConfigError(
            f"{CAPTURE.names}: under SGX the network is the host's, so that its rules prove nothing and it "
            "reads what they redirect: use --fused or the app's UNIX sockets instead"
        )
    user = settings.app_user
    if user is None:
        return
    if user.uid == uid and settings.on:
        raise ConfigError(
            f"{APP_USER.names}: the app would run as user {uid}, as the worker does, and what the worker's user "
            "sends is never captured: give it another user"
        )
    held = capabilities(status)
    if settings.on and not held >> _CAP_NET_ADMIN & 1:
        raise ConfigError(
            f"{CAPTURE.names}: needs CAP_NET_ADMIN in its network namespace (a container: "
            "securityContext.capabilities.add: [NET_ADMIN]), or set it to off"
        )
    if lacking := [name for name, bit in _NEEDED.items() if not held >> bit & 1]:
        raise ConfigError(
            f"{APP_USER.names}: needs {', '.join(lacking)} to start the app as user {user.uid}, or leave it out"
        )


def capabilities(status: str) -> int:
    """The effective set, as a bit mask, from /proc/self/status; empty where there is no such line."""
    found = (line.partition(":")[2] for line in status.splitlines() if line.startswith("CapEff:"))
    return int(next(found, "0"), 16)


def parse_mode(text: str) -> CaptureMode:
    """Raises ValueError."""
    if text not in get_args(CaptureMode):
        raise ValueError(f"{text!r} is not one of {', '.join(get_args(CaptureMode))}")
    return cast(CaptureMode, text)


def parse_user(text: str) -> AppUser:
    """`UID` or `UID:GID`; a user alone is its own group. Raises ValueError."""
    user, colon, group = text.partition(":")
    return AppUser(parse_id(user), parse_id(group if colon else user))


def parse_proxies(text: str) -> frozenset[int]:
    """Users' numbers, or `none`. Raises ValueError."""
    return frozenset() if text == "none" else parse_ids(text)
