# SPDX-License-Identifier: Apache-2.0
"""The redirection that Linkerd's init container installs in a pod (proxy-init v2.4: chains, order, comments, defaults).

    install(pod)                                  # what the injector's defaults give
    install(pod, Rules(skip_inbound=("8443",)))   # with `config.linkerd.io/skip-inbound-ports: "8443"`

Traffic from outside to any TCP port goes to 4143, the pod's own TCP connections to 4140. Left alone: the proxy's user,
everything over `lo`, the skipped ports, UDP. The program is iptables; nothing here decides what is redirected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the stand-in of the proxy needs the numbers alone
    from tests.kit.netns import Namespace

PROXY_UID = 2102
INBOUND, OUTBOUND, CONTROL, ADMIN = 4143, 4140, 4190, 4191
REDIRECT_CHAIN, OUTPUT_CHAIN = "PROXY_INIT_REDIRECT", "PROXY_INIT_OUTPUT"
MULTIPORT = 15  # how many ports one multiport match takes; a range counts as two

Firewall = Literal["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What proxy-init is told. Ports are numbers or `a-b`; the proxy's own ports are always skipped inbound."""

    skip_inbound: tuple[str, ...] = ("4567", "4568")
    skip_outbound: tuple[str, ...] = ("4567", "4568")
    skip_subnets: tuple[str, ...] = ()
    uid: int = PROXY_UID
    inbound_port: int = INBOUND
    outbound_port: int = OUTBOUND

    def redirect(self) -> Iterator[str]:
        """The rules of the chain that PREROUTING jumps to, in order, as `iptables -A CHAIN` takes them."""
        yield from _ignored_ports((str(CONTROL), str(ADMIN), *self.skip_inbound))
        for subnet in self.skip_subnets:
            yield f"-s {subnet} {_comment('ignore-subnet')} -j RETURN"
        yield f"-p tcp {_comment('redirect-all-incoming-to-proxy-port')} -j REDIRECT --to-port {self.inbound_port}"

    def output(self) -> Iterator[str]:
        """The rules of the chain that OUTPUT jumps to, in order."""
        yield f"-m owner --uid-owner {self.uid} {_comment('ignore-proxy-user-id')} -j RETURN"
        yield f"-o lo {_comment('ignore-loopback')} -j RETURN"
        yield from _ignored_ports(self.skip_outbound)
        yield f"-p tcp {_comment('redirect-all-outgoing-to-proxy-port')} -j REDIRECT --to-port {self.outbound_port}"

    def restore(self) -> str:
        """Input for `iptables-restore --noflush`: fills both chains, which are emptied if they are there."""
        chains = {REDIRECT_CHAIN: self.redirect(), OUTPUT_CHAIN: self.output()}
        declared = [f":{chain} - [0:0]" for chain in chains]
        rules = [f"-A {chain} {rule}" for chain, chain_rules in chains.items() for rule in chain_rules]
        return "\n".join(["*nat", *declared, *rules, "COMMIT", ""])


def install(pod: Namespace, rules: Rules | None = None, firewall: Firewall = "iptables-nft") -> None:
    """Runs as proxy-init does: its chains are refilled, the jumps are appended, or keep their place if they are there.
    IPv6 (`--ipv6`, which the injector leaves off) is a second call with an `ip6tables-…`."""
    pod.run(f"{firewall}-restore", "--noflush", stdin=(rules or Rules()).restore())
    for hook, chain in (("PREROUTING", REDIRECT_CHAIN), ("OUTPUT", OUTPUT_CHAIN)):
        jumps = [line for line in saved(pod, firewall) if line.startswith(f"-A {hook} ") and line.endswith(f" {chain}")]
        if not jumps:
            comment = _comment(f"install-proxy-init-{hook.lower()}").split()
            pod.run(firewall, "-t", "nat", "-A", hook, *comment, "-j", chain)


def saved(pod: Namespace, firewall: Firewall = "iptables-nft") -> list[str]:
    """The nat table as `iptables-save` prints it, line by line."""
    return pod.run(f"{firewall}-save", "-t", "nat").splitlines()


def _ignored_ports(ports: tuple[str, ...]) -> Iterator[str]:
    """One RETURN for as many ports as fit in a match."""
    group: list[str] = []
    weight = 0
    for port in ports:
        cost = 2 if "-" in port else 1
        if weight + cost > MULTIPORT:
            yield _return(group)
            group, weight = [], 0
        group.append(port.replace("-", ":"))
        weight += cost
    if group:
        yield _return(group)


def _return(ports: list[str]) -> str:
    listed = ",".join(ports)
    return f"-p tcp -m multiport --dports {listed} {_comment('ignore-port-' + listed)} -j RETURN"


def _comment(text: str) -> str:
    return f"-m comment --comment proxy-init/{text}"
