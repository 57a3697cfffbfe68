# SPDX-License-Identifier: Apache-2.0
"""`marblemesh linkerd …`: what Linkerd has to be told about a Marble's ports, computed from the manifest."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from manifests.model import Manifest
from marblemesh.cli.errors import CliError
from marblemesh.cli.manifest_check import checked, require_valid
from marblemesh.cli.manifest_file import read_manifest
from marblemesh.cli.output import print_json
from marblemesh.inject.linkerd_ports import (
    LinkerdMode,
    UnknownMarble,
    mesh_ports,
    pod_annotations,
    service_annotations,
)

verbs = typer.Typer(no_args_is_help=True, help="Beside Linkerd: what its proxies have to know about a Marble's ports.")

LINKERD_PORTS = {4140: "outbound", 4143: "inbound", 4190: "control", 4191: "admin"}
_PLACES = "# pod: annotations of the pod template; service: of a Service with the same port numbers\n"

Annotations = dict[str, dict[str, dict[str, str]]]


class AnnotationFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"


@verbs.callback()
def _group() -> None:
    """Beside Linkerd: what its proxies have to know about a Marble's ports."""


@verbs.command(
    "annotations", epilog="Example: marblemesh linkerd annotations --manifest manifest.json --marble web --mode skip"
)
def print_annotations(
    manifest: Annotated[Path, typer.Option("--manifest", "-f", metavar="FILE", help="The manifest, JSON or YAML.")],
    marble: Annotated[
        list[str] | None, typer.Option("--marble", metavar="TYPE", help="Only this Marble type; may repeat.")
    ] = None,
    mode: Annotated[
        LinkerdMode,
        typer.Option(help="opaque: Linkerd carries the ports as bytes, in its own mTLS. skip: it is left out of them."),
    ] = LinkerdMode.OPAQUE,
    output: Annotated[AnnotationFormat, typer.Option("--output", "-o", help="yaml, or json for programs.")] = (
        AnnotationFormat.YAML
    ),
) -> None:
    """Print the annotations with which Linkerd lets the mesh's own TLS pass: for each Marble type those of the pod
    template and those of the Service. They follow from the ports in the manifest's TLS tags: when these change, print
    them again."""
    document = read_manifest(manifest)
    require_valid(document)
    found = _annotations(checked(document.raw), marble, mode)
    if output is AnnotationFormat.JSON:
        print_json(found)
        return
    typer.echo(_PLACES + yaml.safe_dump(found, sort_keys=False, width=1000), nl=False)


def _annotations(manifest: Manifest, only: list[str] | None, mode: LinkerdMode) -> Annotations:
    """By Marble type and place. Raises CliError for a type that the manifest lacks, or a port that is Linkerd's own."""
    found: Annotations = {}
    for marble_type in dict.fromkeys(only or sorted(manifest.marbles)):
        try:
            ports = mesh_ports(manifest, marble_type)
        except UnknownMarble as error:
            raise CliError(str(error)) from None
        if taken := [port for port in ports.inbound if port in LINKERD_PORTS]:
            whose = f"Linkerd's {LINKERD_PORTS[taken[0]]} port in every pod"
            raise CliError(f"Marble {marble_type!r} has Incoming port {taken[0]}, which is {whose}: give it another")
        found[marble_type] = {
            "pod": pod_annotations(ports, mode),
            "service": service_annotations(ports.inbound, mode),
        }
    return found
