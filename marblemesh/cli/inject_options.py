# SPDX-License-Identifier: Apache-2.0
"""The flags that say what a Marble's pod gets: the same for `marblemesh inject` and the admission webhook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from manifests.errors import ManifestError
from manifests.model import Manifest
from marblemesh.cli.errors import CliError
from marblemesh.cli.injected import Options, injected
from marblemesh.cli.manifest_check import checked, described
from marblemesh.cli.manifest_file import read_manifest
from marblemesh.inject.linkerd_ports import LinkerdMode
from marblemesh.inject.settings import Advertise, Settings, parse_admin, parse_coordinator, parse_domain
from marblemesh.inject.sgx import INTEL, SgxResources, sgx_resources

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InjectSettings:
    settings: Settings


OPTIONS: Options = {
    "coord_addr": (
        Annotated[str, typer.Option("--coord-addr", metavar="HOST:PORT", help="Marble API of the Coordinator.")],
        "coordinator-mesh-api.marblerun:2001",
    ),
    "cluster_domain": (
        Annotated[str, typer.Option(metavar="DOMAIN", help="DNS domain of the cluster.")],
        "cluster.local",
    ),
    "sgx_resource": (
        Annotated[
            str | None,
            typer.Option(
                metavar="VENDOR|KEY",
                help="intel (default), azure, alibaba, another plugin's resource key, or none (TDX, simulation).",
                show_default=False,
            ),
        ],
        None,
    ),
    "worker": (
        Annotated[
            bool,
            typer.Option(
                "--worker/--no-worker",
                help="With what our worker needs beyond MarbleRun's variables: run directory, admin port, probes.",
            ),
        ],
        True,
    ),
    "wrap": (
        Annotated[bool, typer.Option("--wrap", help="Put 'marblemesh proxy run --' before the command. Not for SGX.")],
        False,
    ),
    "simulation": (
        Annotated[bool, typer.Option("--simulation", help="No TEE, keys from the Secret simulated-platform.")],
        False,
    ),
    "admin_addr": (
        Annotated[str, typer.Option(metavar="IP:PORT|off", help="Of the worker, for probes and Prometheus.")],
        "0.0.0.0:15090",
    ),
    "advertise": (
        Annotated[Advertise, typer.Option(help="How peers find an instance: by the type's Service or its pod's IP.")],
        Advertise.SERVICE,
    ),
    "manifest": (
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="The Marble manifest: does it have the types, which ports are mTLS."),
        ],
        None,
    ),
    "linkerd": (
        Annotated[
            LinkerdMode | None,
            typer.Option(help="Mark mesh ports for Linkerd: opaque to it, or past it. Needs --manifest."),
        ],
        None,
    ),
}


def with_inject_settings(parameter: str = "injection") -> Callable[[Callable[..., None]], Any]:
    """A decorator: the verb's parameter is an `InjectSettings`, its command line has the flags above."""
    decorate: Callable[[Callable[..., None]], Any] = injected(
        parameter, OPTIONS, lambda _, values: InjectSettings(build_settings(values))
    )
    return decorate


def build_settings(values: dict[str, Any]) -> Settings:
    """Settings from the flags by name. Raises typer.BadParameter, and CliError for a bad manifest."""
    if values["linkerd"] is not None and values["manifest"] is None:
        raise typer.BadParameter("--linkerd needs --manifest, which says what the Marbles' ports are")
    sgx = _sgx(values["sgx_resource"], simulation=values["simulation"])
    if values["wrap"] and sgx is not None:
        raise typer.BadParameter(
            "--wrap would start the worker outside the enclave: with SGX it belongs into the image's Gramine manifest "
            "(for TDX or simulation give --sgx-resource none)"
        )
    for needs_worker in ("wrap", "simulation"):
        if values[needs_worker] and not values["worker"]:
            raise typer.BadParameter(f"--{needs_worker} needs the worker: leave out --no-worker")
    return Settings(
        coordinator=_parsed("--coord-addr", parse_coordinator, values["coord_addr"]),
        cluster_domain=_parsed("--cluster-domain", parse_domain, values["cluster_domain"]),
        sgx=sgx,
        worker=values["worker"],
        wrap=values["wrap"],
        simulation=values["simulation"],
        admin=_parsed("--admin-addr", parse_admin, values["admin_addr"]),
        advertise=values["advertise"],
        linkerd=values["linkerd"],
        manifest=None if values["manifest"] is None else _manifest(values["manifest"]),
    )


def _sgx(text: str | None, *, simulation: bool) -> SgxResources | None:
    if text is None:
        return None if simulation else INTEL
    return _parsed("--sgx-resource", sgx_resources, text)


def _parsed(flag: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}") from None


def _manifest(path: Path) -> Manifest:
    document = read_manifest(path)
    try:
        return checked(document.raw)
    except ManifestError as error:
        raise CliError(described(document, error)[0]) from None
