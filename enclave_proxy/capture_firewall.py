# SPDX-License-Identifier: Apache-2.0
"""The kernel's packet filter, through nft(8) or iptables(8): puts rules in force, takes them away, looks at them.

Programs and not netlink: each of them speaks for its own format's many versions, and what an operator sees with them is
what we see.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from enclave_proxy.capture_order import foreign_proxy, iptables_objection, nft_objection
from enclave_proxy.capture_rules import (
    GUARD_CHAINS,
    NAT_CHAINS,
    TABLE,
    CaptureRules,
    iptables_own,
    iptables_removal,
    iptables_script,
    nft_removal,
    nft_script,
)
from enclave_proxy.errors import ConfigError, ProxyError

# Where they are, whatever the worker's own PATH is: this is not for a host's environment to say.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# For one call; it may have to wait for another program that changes the rules.
PATIENCE = 10.0
# More than a node with thousands of services has.
MAX_LISTING = 32 * 1024 * 1024
FAMILIES = ("iptables", "ip6tables")
_IF_INET6 = Path("/proc/net/if_inet6")


class FirewallError(ProxyError):
    """The rules cannot be changed or read; says which program said what."""


class Firewall(Protocol):
    """One of the two."""

    async def check(self, rules: CaptureRules) -> None:
        """Would these be accepted here? Changes nothing. Raises FirewallError."""

    async def apply(self, rules: CaptureRules) -> None:
        """Replace whatever of ours is in force, after a crash too. Raises FirewallError."""

    async def remove(self) -> None:
        """Take away whatever of ours is there. Raises FirewallError."""

    async def objection(self) -> str | None:
        """Why what is in force is not what was applied, or does not come first; None if it does. Raises FirewallError
        if it cannot be read."""


class Nft:
    """A table of its own for both families."""

    def __init__(self) -> None:
        self._own = ""
        self._proxies: frozenset[int] = frozenset()

    async def check(self, rules: CaptureRules) -> None:
        """See Firewall."""
        await call("nft", "-c", "-f", "-", text=nft_script(rules))

    async def apply(self, rules: CaptureRules) -> None:
        """See Firewall."""
        await call("nft", "-f", "-", text=nft_script(rules))
        self._own, self._proxies = await self._list_own(), rules.proxies

    async def remove(self) -> None:
        """See Firewall."""
        await call("nft", "-f", "-", text=nft_removal())

    async def objection(self) -> str | None:
        """See Firewall."""
        listing = await call("nft", "-j", "list", "chains")
        try:
            found = nft_objection(listing)
        except (ValueError, KeyError, TypeError) as error:
            raise FirewallError(f"nft -j list chains: cannot be understood ({type(error).__name__})") from error
        if found is not None:
            return found
        if await self._list_own() != self._own:
            return f"somebody has changed table inet {TABLE}"
        try:
            saved = await call("iptables-save", "-t", "nat")
        except FirewallError:
            return None  # not installed, or closed to this user: then Linkerd's rules cannot be looked at
        return foreign_proxy(saved, self._proxies)

    async def _list_own(self) -> str:
        return await call("nft", "-s", "list", "table", "inet", TABLE)


class Iptables:
    """Chains of its own in the tables nat and filter, of each family."""

    def __init__(self, prefixes: Sequence[str] = ()) -> None:
        """`prefixes`: the programs' names before `-save`; those of the families that this machine has, if none."""
        self._prefixes = tuple(prefixes) or iptables_families()
        self._own: dict[str, str] = {}
        self._rules: CaptureRules | None = None

    async def check(self, rules: CaptureRules) -> None:
        """See Firewall."""
        for prefix in self._prefixes:
            script = iptables_script(rules, await call(f"{prefix}-save"))
            await call(f"{prefix}-restore", "--test", "--noflush", "--wait=5", text=script)

    async def apply(self, rules: CaptureRules) -> None:
        """See Firewall. Each family and table changes as a whole; between two of them the guard keeps the gap shut. If
        one fails, those before it go back to what they were."""
        begun: list[str] = []
        try:
            for prefix in self._prefixes:
                saved = await call(f"{prefix}-save")
                begun.append(prefix)
                await self._write(prefix, iptables_script(rules, saved))
        except FirewallError:
            for prefix in begun:
                saved = await call(f"{prefix}-save")
                before = iptables_removal(saved) if self._rules is None else iptables_script(self._rules, saved)
                await self._write(prefix, before)
            raise
        self._rules = rules

    async def _write(self, prefix: str, script: str) -> None:
        await call(f"{prefix}-restore", "--noflush", "--wait=5", text=script)
        self._own[prefix] = iptables_own(await call(f"{prefix}-save"))

    async def remove(self) -> None:
        """See Firewall."""
        for prefix in self._prefixes:
            saved = await call(f"{prefix}-save")
            if any(chain in saved for chain in (*NAT_CHAINS, *GUARD_CHAINS)):
                await call(f"{prefix}-restore", "--noflush", "--wait=5", text=iptables_removal(saved))

    async def objection(self) -> str | None:
        """See Firewall."""
        proxies = frozenset() if self._rules is None else self._rules.proxies
        for prefix in self._prefixes:
            saved = await call(f"{prefix}-save")
            found = iptables_objection(saved) or foreign_proxy(saved, proxies)
            if found is None and iptables_own(saved) != self._own.get(prefix):
                found = "somebody has changed our rules"
            if found is not None:
                return f"{prefix}: {found}"
        return None


def choose(kind: str) -> tuple[Firewall, list[Firewall]]:
    """The one that was named (`auto`: nft where it is), and the others that are there: a worker that was killed may
    have left rules in them. Raises ConfigError if it is not installed."""
    nft, iptables = program("nft") is not None, program("iptables-save") is not None
    if kind == "nft" or (kind == "auto" and nft):
        if not nft:
            raise ConfigError(_missing("nft", kind))
        families = [family for family in FAMILIES if program(f"{family}-save") is not None]
        return Nft(), [Iptables(families)] if families else []
    if not iptables:
        raise ConfigError(_missing("nft or iptables" if kind == "auto" else "iptables", kind))
    return Iptables(), [Nft()] if nft else []


def iptables_families() -> tuple[str, ...]:
    """`iptables`, and `ip6tables` where there is IPv6. Raises ConfigError where IPv6 could not be captured."""
    if not _IF_INET6.exists() or not _IF_INET6.read_text().strip():
        return FAMILIES[:1]
    if program("ip6tables-save") is None:
        raise ConfigError(_missing("ip6tables", "iptables"))
    return FAMILIES


def program(name: str) -> str | None:
    """Where it is installed."""
    return shutil.which(name, path=PATH)


def _missing(name: str, kind: str) -> str:
    return f"EDG_MARBLE_CAPTURE (--capture): {kind} needs {name}, which is not in {PATH}: install it, or --capture off"


async def call(name: str, *arguments: str, text: str = "") -> str:
    """Run one of the programs to its end; what it prints. Raises FirewallError with what it says is wrong."""
    where = program(name)
    if where is None:
        raise FirewallError(f"{name} is not in {PATH}")
    shown = f"{name} {' '.join(arguments)}".strip()
    # A file, not a pipe: a program that ends without reading all of it is told by its status, not by a broken pipe.
    with os.fdopen(os.memfd_create(name), "w+") as script:
        script.write(text)
        script.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                where, *arguments, stdin=script, stdout=PIPE, stderr=PIPE, env={"PATH": PATH, "LC_ALL": "C"}
            )
        except OSError as error:
            raise FirewallError(f"{shown}: {error.strerror}") from error
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        raise FirewallError(f"{shown}: did not end within {PATIENCE:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        why = err.decode(errors="replace").strip().partition("\n")[0][:300]
        raise FirewallError(f"{shown}: {why or f'exit status {process.returncode}'}")
    if len(out) > MAX_LISTING:
        raise FirewallError(f"{shown}: says more than {MAX_LISTING} bytes")
    return out.decode(errors="replace")
