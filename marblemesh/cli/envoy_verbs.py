# SPDX-License-Identifier: Apache-2.0
"""`marblemesh envoy bootstrap …`: the configuration of a stock Envoy, for each place where it can stand."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from enum import StrEnum
from typing import Annotated

import typer
import yaml

from manifests.address import parse_port
from marblemesh.envoy import Config, Edge, InMarble, Originator, Peers, Tcp, Terminator, Unix
from marblemesh.envoy.bootstrap import Route
from marblemesh.envoy.parts import Address, address
from sds.identity import IdentityError

verbs = typer.Typer(no_args_is_help=True, help="Stock Envoys in and around the mesh.")
bootstraps = typer.Typer(
    no_args_is_help=True,
    help="Print a bootstrap for 'envoy -c'. terminator, originator and in-marble belong into a Marble's TEE, beside "
    "its worker; edge stands outside and sees ciphertext only.",
)
verbs.add_typer(bootstraps, name="bootstrap")


class ConfigFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"


# What a host name may be, in DNS or in a container network.
_NAME = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_.]{0,252}[A-Za-z0-9_.])?")


def _host_port(text: str) -> Tcp:
    """`host:port`, `[v6]:port` or `:port` (all interfaces)."""
    host, separator, port = text.rpartition(":")
    if not separator:
        raise typer.BadParameter(f"{text!r} is no address: want HOST:PORT, such as 10.0.0.7:8080 or [::1]:8080")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise typer.BadParameter(f"{text!r} is no address: an IPv6 address needs brackets, such as [::1]:8080")
    where = Tcp(host or "0.0.0.0", _port(port))
    if not where.is_ip and not _NAME.fullmatch(host):
        raise typer.BadParameter(f"{text!r} is no address: {host!r} is no IP address and no host name")
    return where


def _bind(text: str) -> Tcp:
    where = _host_port(text)
    if not where.is_ip:
        raise typer.BadParameter(f"{text!r}: Envoy listens on an IP address, not on a name")
    return where


def _dialled(text: str) -> Tcp:
    if text.startswith(":"):
        raise typer.BadParameter(f"{text!r} names nobody: want HOST:PORT, such as coordinator{text}")
    return _host_port(text)


def _server_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no host name")
    return text


def _app_side(text: str) -> Address:
    """`unix:<path>`, or loopback: both ends of this hop are plaintext and stay inside the TEE."""
    if text.startswith("unix:"):
        if not text.removeprefix("unix:"):
            raise typer.BadParameter("unix: needs the path of a socket, such as unix:8080.sock")
        return Unix(text.removeprefix("unix:"))
    where = _host_port(text.removeprefix("tcp:"))
    if not (where.is_ip and ipaddress.ip_address(where.host).is_loopback):
        raise typer.BadParameter(f"{text!r}: plaintext stays in the TEE, want unix:PATH or a loopback IP address")
    return where


def _route(text: str) -> Route:
    """`NAME=TYPE:PORT`; NAME `*` takes every connection that no other route takes."""
    name, equals, target = text.partition("=")
    marble_type, separator, port = target.rpartition(":")
    if not (name and equals and marble_type and separator):
        raise typer.BadParameter(f"{text!r} is no route: want SNI=TYPE:PORT, such as web.example.com=web:8443")
    return Route(None if name == "*" else name, marble_type, _port(port))


def _peers(types: list[str] | None, trust_domain: str | None) -> Peers:
    peers = Peers(tuple(types or ()), trust_domain)
    try:
        peers.matchers()
    except IdentityError as error:
        raise typer.BadParameter(f"--peer, --trust-domain: {error}") from None
    return peers


def _port(text: str) -> int:
    if not text:
        raise typer.BadParameter("the port is missing")
    try:
        return parse_port(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


PeerTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--peer", metavar="TYPE", help="Only Marbles of this type; may repeat. Default: any Marble of the mesh."
    ),
]
TrustDomain = Annotated[
    str | None,
    typer.Option(
        "--trust-domain",
        metavar="NAME",
        help="Only of this mesh. Not needed with ROOTCA, which holds one mesh's roots.",
    ),
]
SdsSocket = Annotated[
    str,
    typer.Option(
        "--sds-socket",
        metavar="PATH",
        envvar="MARBLEMESH_SDS_SOCKET",
        help="The worker's SDS socket; a relative path is taken from where Envoy is started.",
    ),
]
Coordinator = Annotated[
    Tcp, typer.Option("--coordinator", metavar="HOST:PORT", parser=_dialled, help="The Coordinator's xDS port.")
]
Admin = Annotated[
    Tcp | None,
    typer.Option("--admin", metavar="HOST:PORT", parser=_bind, help="Envoy's admin port. Default: none."),
]
Printed = Annotated[ConfigFormat, typer.Option("--output", "-o", help="Envoy reads both.")]
LISTEN_HELP = "Where Envoy listens; :PORT is all IPv4 interfaces."


@bootstraps.command(
    epilog="Example: marblemesh envoy bootstrap terminator --listen :8443 --app unix:app.sock --peer web > envoy.yaml"
)
def terminator(
    listen: Annotated[Tcp, typer.Option("--listen", metavar="HOST:PORT", parser=_bind, help=LISTEN_HELP)],
    app: Annotated[
        Address,
        typer.Option("--app", metavar="unix:PATH|HOST:PORT", parser=_app_side, help="Where the app listens."),
    ],
    peer: PeerTypes = None,
    trust_domain: TrustDomain = None,
    sds_socket: SdsSocket = "sds.sock",
    admin: Admin = None,
    output: Printed = ConfigFormat.YAML,
) -> None:
    """Envoy in a Marble's TEE that ends mutual TLS in front of the app: only attested peers get through."""
    _print(Terminator(listen, app, _peers(peer, trust_domain), Unix(sds_socket)).bootstrap(), admin, output)


@bootstraps.command(
    epilog="Example: marblemesh envoy bootstrap originator --listen unix:db.sock --to db:5432 --peer db > envoy.yaml"
)
def originator(
    listen: Annotated[
        Address,
        typer.Option("--listen", metavar="unix:PATH|HOST:PORT", parser=_app_side, help="Where the app connects to."),
    ],
    to: Annotated[Tcp, typer.Option("--to", metavar="HOST:PORT", parser=_dialled, help="The peer's mesh port.")],
    peer: PeerTypes = None,
    trust_domain: TrustDomain = None,
    sni: Annotated[
        str | None,
        typer.Option(
            "--sni", metavar="NAME", parser=_server_name, help="The name to ask for. Default: the host of --to."
        ),
    ] = None,
    sds_socket: SdsSocket = "sds.sock",
    admin: Admin = None,
    output: Printed = ConfigFormat.YAML,
) -> None:
    """Envoy in a Marble's TEE that starts mutual TLS behind the app: only attested peers are spoken to."""
    _print(Originator(listen, to, _peers(peer, trust_domain), sni, Unix(sds_socket)).bootstrap(), admin, output)


@bootstraps.command(
    "in-marble",
    epilog="Example: marblemesh envoy bootstrap in-marble --marble-type web --coordinator coordinator:18000 "
    "--advertise 10.0.0.7 > envoy.yaml",
)
def in_marble(
    marble_type: Annotated[
        str, typer.Option("--marble-type", metavar="TYPE", help="The Marble's type in the manifest.")
    ],
    coordinator: Coordinator,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise", metavar="ADDRESS", help="Where peers reach this Marble; its certificate must name it."
        ),
    ] = None,
    sds_socket: SdsSocket = "sds.sock",
    admin: Admin = None,
    output: Printed = ConfigFormat.YAML,
) -> None:
    """Envoy in a Marble's TEE as its whole data path: listeners, clusters and endpoints come from the Coordinator."""
    _print(InMarble(marble_type, coordinator, advertise, Unix(sds_socket)).bootstrap(), admin, output)


@bootstraps.command(
    epilog="Example: marblemesh envoy bootstrap edge --listen :443 --coordinator coordinator:18000 --certificate c.pem "
    "--key edge.key --root coordinator.pem --route shop.example.com=web:8443 > envoy.yaml"
)
def edge(
    listen: Annotated[Tcp, typer.Option("--listen", metavar="HOST:PORT", parser=_bind, help=LISTEN_HELP)],
    coordinator: Coordinator,
    certificate: Annotated[
        str,
        typer.Option("--certificate", metavar="FILE", help="The certificate in the manifest's Mesh.Gateways (PEM)."),
    ],
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="Its key (PEM).")],
    root: Annotated[
        str, typer.Option("--root", metavar="FILE", help="The Coordinator's root, by 'marblemesh certificate root'.")
    ],
    route: Annotated[
        list[Route],
        typer.Option(
            "--route",
            metavar="SNI=TYPE:PORT",
            parser=_route,
            help="Connections that ask for this name (* is any other) go to that Marble type's port; may repeat.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The gateway's name in the manifest.")] = "edge",
    admin: Admin = None,
    output: Printed = ConfigFormat.YAML,
) -> None:
    """Envoy outside, as gateway: chooses a Marble by the name in the ClientHello and never ends TLS."""
    for name_, count in Counter(r.server_name or "*" for r in route).items():
        if count > 1:
            raise typer.BadParameter(f"two routes for {name_!r}", param_hint="--route")
    made = Edge(listen, coordinator, certificate, key, root, tuple(route), name)
    _print(made.bootstrap(), admin, output)


def _print(config: Config, admin: Tcp | None, output: ConfigFormat) -> None:
    if admin is not None:
        config = {**config, "admin": {"address": address(admin)}}
    if output is ConfigFormat.JSON:
        typer.echo(json.dumps(config, indent=2))
    else:
        typer.echo(yaml.dump(config, Dumper=_Plain, sort_keys=False, width=120), nl=False)


class _Plain(yaml.SafeDumper):
    """Without anchors: the same part twice is written twice, as people write it."""

    def ignore_aliases(self, _data: object) -> bool:
        return True
