# SPDX-License-Identifier: Apache-2.0
"""The packet filter's rules for transparent capture, as text for nft(8) and iptables-restore(8). Pure.

    app ─► output, before all other nat: a port of Outgoing? ─► the worker's own listener
      │    (not of the worker's user, not of Linkerd's, not over lo)
      └──► guard (filter): what should have been redirected by now and was not is reset
    peer ─► prerouting, after all other nat: a port of Incoming? ─► the worker's listener for it
      └──► guard (filter): the app's port itself is reset

Output comes first because the first redirection is final: another mesh's would carry the app's plaintext around us.
Prerouting comes last for the same reason: what another mesh wraps in its own TLS is its own to unwrap; its proxy then
hands it on over loopback, where its user is the only one whose connections to a port of Incoming go to the worker.

The guard looks at first packets (SYN) alone. It does not depend on what others did in the nat tables: a connection that
left for a port of Outgoing and does not go to the worker is reset, whoever has redirected it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TABLE = "marblemesh"
# Lower comes first. Connection tracking is at -200, everybody's nat rules at -100 (iptables always, nft's `dstnat`).
OUTPUT_PRIORITY = -110
PREROUTING_PRIORITY = -90

NAT_CHAINS = ("MARBLEMESH_OUTPUT", "MARBLEMESH_INBOUND")
GUARD_CHAINS = ("MARBLEMESH_GUARD_OUT", "MARBLEMESH_GUARD_IN")
# Where each own chain hangs, per table of iptables: (built-in chain, own chain, first or last).
_HOOKS = {
    "filter": (("OUTPUT", "MARBLEMESH_GUARD_OUT", True), ("INPUT", "MARBLEMESH_GUARD_IN", True)),
    "nat": (("OUTPUT", "MARBLEMESH_OUTPUT", True), ("PREROUTING", "MARBLEMESH_INBOUND", False)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRules:
    """`capture`: the port of the worker's listener for what the app dials. `outgoing`: ports that belong to the mesh.
    `incoming`: pairs of (the app's port, the worker's for it). `closed`: ports that the app may still listen on, and
    nobody may reach any more. `worker`: the one user whose connections are no app's. `proxies`: users of other meshes'
    proxies, Linkerd's as a rule."""

    capture: int
    outgoing: frozenset[int]
    incoming: tuple[tuple[int, int], ...]
    closed: frozenset[int]
    worker: int
    proxies: frozenset[int]

    @property
    def exempt(self) -> list[int]:
        """Users whose outgoing connections are left alone."""
        return sorted({self.worker, *self.proxies})

    @property
    def guarded(self) -> list[int]:
        """Ports of the app that nobody outside reaches but through the worker."""
        return sorted({*(port for port, _ in self.incoming), *self.closed})


def nft_script(rules: CaptureRules) -> str:
    """Replaces what was there, in one transaction of the kernel: all of it or nothing."""
    lines = [
        f"table inet {TABLE} {{}}",  # so that the next line always finds one
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        *_chain("output", f"type nat hook output priority {OUTPUT_PRIORITY}", _nft_output(rules)),
        *_chain("prerouting", f"type nat hook prerouting priority {PREROUTING_PRIORITY}", _nft_prerouting(rules)),
        *_chain("guard_output", "type filter hook output priority 0", _nft_guard_output(rules)),
        *_chain("guard_input", "type filter hook input priority 0", _nft_guard_input(rules)),
        "}",
    ]
    return "\n".join(lines) + "\n"


def nft_removal() -> str:
    """Takes everything away; no error if nothing is there."""
    return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"


def _chain(name: str, hook: str, body: Iterable[str]) -> Iterator[str]:
    yield f"  chain {name} {{"
    yield f"    {hook}; policy accept;"
    yield from (f"    {line}" for line in body)
    yield "  }"


def _nft_output(rules: CaptureRules) -> Iterator[str]:
    for port, own in rules.incoming if rules.proxies else ():
        yield f'oifname "lo" meta skuid {_set(rules.proxies)} tcp dport {port} redirect to :{own}'
    yield f"meta skuid {_set(rules.exempt)} return"
    yield 'oifname "lo" return'
    if rules.outgoing:
        yield f"tcp dport {_set(rules.outgoing)} redirect to :{rules.capture}"


def _nft_prerouting(rules: CaptureRules) -> Iterator[str]:
    yield 'iifname "lo" return'
    for port, own in rules.incoming:
        yield f"fib daddr type local tcp dport {port} redirect to :{own}"


def _nft_guard_output(rules: CaptureRules) -> Iterator[str]:
    yield "tcp flags & (fin | syn | rst | ack) != syn return"
    if rules.guarded and rules.proxies:
        clear = f'oifname "lo" meta skuid {_set(rules.proxies)} tcp dport {_set(rules.guarded)}'
        yield f"{clear} reject with tcp reset"
    yield f"meta skuid {_set(rules.exempt)} return"
    for port in sorted(rules.outgoing):
        yield f'oifname != "lo" tcp dport {port} reject with tcp reset'
        taken = f"ct status dnat tcp dport != {rules.capture} ct original proto-dst {port}"
        yield f"{taken} reject with tcp reset"


def _nft_guard_input(rules: CaptureRules) -> Iterator[str]:
    if rules.guarded:
        first = 'iifname != "lo" tcp flags & (fin | syn | rst | ack) == syn'
        yield f"{first} tcp dport {_set(rules.guarded)} reject with tcp reset"


def _set(numbers: Iterable[int]) -> str:
    return "{ " + ", ".join(map(str, sorted(numbers))) + " }"


def iptables_script(rules: CaptureRules, saved: str) -> str:
    """For `iptables-restore --noflush`, IPv4 and IPv6 alike. `saved` is what iptables-save has said: our jumps that are
    there already are taken out and put where they belong. Each table changes as a whole, the guard first."""
    bodies = {
        "filter": [*_iptables_guard_output(rules), *_iptables_guard_input(rules)],
        "nat": [*_iptables_output(rules), *_iptables_prerouting(rules)],
    }
    return "".join(_restored(table, bodies[table], saved) for table in bodies)


def iptables_removal(saved: str) -> str:
    """Takes away what `saved` shows of ours."""
    parts = []
    for table, hooks in _HOOKS.items():
        chains = [own for _, own, _ in hooks if f":{own} " in _table(saved, table)]
        if chains:
            gone = [*_unhooked(table, saved), *(f"-F {own}" for own in chains), *(f"-X {own}" for own in chains)]
            parts.append("\n".join([f"*{table}", *gone, "COMMIT", ""]))
    return "".join(reversed(parts))  # the guard last


def iptables_own(saved: str) -> str:
    """The lines that are ours, of what iptables-save says: our chains' rules, and the jumps to them."""
    lines = (line for line in saved.splitlines() if line.startswith("-A ") and "MARBLEMESH_" in line)
    return "\n".join(lines)


def _restored(table: str, body: list[str], saved: str) -> str:
    hooks = _HOOKS[table]
    lines = [f"*{table}"]
    lines += [f":{own} - [0:0]" for _, own, _ in hooks]  # made, or emptied if it is there
    lines += _unhooked(table, saved)
    lines += body
    lines += [f"-I {chain} 1 -j {own}" if first else f"-A {chain} -j {own}" for chain, own, first in hooks]
    return "\n".join([*lines, "COMMIT", ""])


def _unhooked(table: str, saved: str) -> list[str]:
    jumps = [f"-A {chain} -j {own}" for chain, own, _ in _HOOKS[table]]
    there = (line for line in _table(saved, table).splitlines() if line in jumps)
    return [line.replace("-A ", "-D ", 1) for line in there]


def _table(saved: str, table: str) -> str:
    return saved.partition(f"*{table}\n")[2].partition("\nCOMMIT")[0]


def _iptables_output(rules: CaptureRules) -> Iterator[str]:
    chain = "-A MARBLEMESH_OUTPUT"
    for user in sorted(rules.proxies):
        for port, own in rules.incoming:
            yield f"{chain} -o lo -p tcp -m owner --uid-owner {user} -m tcp --dport {port} -j REDIRECT --to-ports {own}"
    yield from (f"{chain} -m owner --uid-owner {user} -j RETURN" for user in rules.exempt)
    yield f"{chain} -o lo -j RETURN"
    for port in sorted(rules.outgoing):
        yield f"{chain} -p tcp -m tcp --dport {port} -j REDIRECT --to-ports {rules.capture}"


def _iptables_prerouting(rules: CaptureRules) -> Iterator[str]:
    local = "-A MARBLEMESH_INBOUND ! -i lo -p tcp -m addrtype --dst-type LOCAL -m tcp"
    yield from (f"{local} --dport {port} -j REDIRECT --to-ports {own}" for port, own in rules.incoming)


def _iptables_guard_output(rules: CaptureRules) -> Iterator[str]:
    chain, reset = "-A MARBLEMESH_GUARD_OUT", "-j REJECT --reject-with tcp-reset"
    for user in sorted(rules.proxies):
        for port in rules.guarded:
            yield f"{chain} -o lo -p tcp -m owner --uid-owner {user} -m tcp --syn --dport {port} {reset}"
    yield from (f"{chain} -m owner --uid-owner {user} -j RETURN" for user in rules.exempt)
    for port in sorted(rules.outgoing):
        yield f"{chain} ! -o lo -p tcp -m tcp --syn --dport {port} {reset}"
        taken = f"-p tcp -m conntrack --ctstate DNAT --ctorigdstport {port}"
        yield f"{chain} {taken} -m tcp --syn ! --dport {rules.capture} {reset}"


def _iptables_guard_input(rules: CaptureRules) -> Iterator[str]:
    for port in rules.guarded:
        yield f"-A MARBLEMESH_GUARD_IN ! -i lo -p tcp -m tcp --syn --dport {port} -j REJECT --reject-with tcp-reset"
