# SPDX-License-Identifier: Apache-2.0
"""From a program's files to what its manifest says. Pure: no file is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from marblemesh.gramine.errors import GramineError
from marblemesh.gramine.graph import FileGraph

# Gramine's own packages put its build of glibc here.
RUNTIME = Path("/usr/lib/x86_64-linux-gnu/gramine/runtime/glibc")
RUN_DIR = "/run/marblemesh"
ERA_CONFIG = "/etc/marblemesh/era-config.json"
_DEVICE = {"EDG_ATTESTATION_PLATFORM": "gramine"}


class Kind(StrEnum):
    """A program; also the name of its template."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    FUSED = "fused"


# What a host may say: where others are and what this one is called. Nothing of it makes an unproven peer a proven one.
# Not among them: simulation, no attestation, whom to pin, where keys and sockets lie.
PASSED: Mapping[Kind, tuple[str, ...]] = {
    Kind.COORDINATOR: (
        "EDG_COORDINATOR_CLIENT_ADDR",
        "EDG_COORDINATOR_DNS_NAMES",
        "EDG_COORDINATOR_MESH_ADDR",
        "EDG_COORDINATOR_PROMETHEUS_ADDR",
        "EDG_COORDINATOR_XDS_ADDR",
        "EDG_HTTP_ERROR_LOG_LEVEL",
        "EDG_PCCS_URL",
    ),
    Kind.WORKER: (
        "EDG_COORDINATOR_CLIENT_ADDR",
        "EDG_MARBLE_ADMIN_ADDR",
        "EDG_MARBLE_ADVERTISE",
        "EDG_MARBLE_COORDINATOR_ADDR",
        "EDG_MARBLE_DNS_NAMES",
        "EDG_MARBLE_XDS_ADDR",
        "EDG_PCCS_URL",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator says. `command` is the app's command line; `data_dir` the one folder of the host that is
    written to: the Coordinator's sealed state, or a Marble's UUID file."""

    kind: Kind
    data_dir: str
    marble_type: str | None = None
    command: tuple[str, ...] = ()
    start_dir: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    era_config: Path | None = None
    hosts: Path
    runtime: Path = RUNTIME
    enclave_size: str = "1G"
    max_threads: int = 64
    product_id: int
    security_version: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A manifest's content. A mount is the path inside and the one outside."""

    entrypoint: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    passed: tuple[str, ...]
    mounts: tuple[tuple[str, str], ...]
    trusted: tuple[str, ...]
    data_dir: str
    settings: Settings


def make_plan(graph: FileGraph, settings: Settings) -> Plan:
    """Raises GramineError for a file that could not be mounted safely."""
    mounts = {"/lib": str(settings.runtime), "/etc/hosts": str(settings.hosts)}
    if settings.era_config is not None:
        mounts[ERA_CONFIG] = str(settings.era_config)
    trusted = {f"{settings.runtime}/", *(path for inside, path in mounts.items() if inside != "/lib")}
    trusted.update(str(path) for path in (*graph.files, *graph.libraries))
    trusted.update(f"{path}/" for path in graph.folders)
    folders = _folders(graph)
    mounts.update((folder, folder) for folder in folders)
    for path in (*graph.files, *graph.libraries):
        if not any(path.is_relative_to(folder) for folder in folders):
            mounts[str(path)] = str(path)
    _check(trusted, settings)
    return Plan(
        entrypoint=str(graph.python),
        argv=_argv(graph, settings),
        env=_environment(graph, settings),
        passed=tuple(name for name in PASSED.get(settings.kind, PASSED[Kind.WORKER]) if name not in settings.env),
        mounts=tuple(sorted(mounts.items())),
        trusted=tuple(sorted(trusted)),
        data_dir=settings.data_dir,
        settings=settings,
    )


def _folders(graph: FileGraph) -> list[str]:
    """The folders that Python lists when it looks for modules: they are mounted whole, so that they can be listed.
    That a file can be seen there does not mean that it can be opened; only trusted ones can."""
    wanted = {path.parent for path in graph.files if path.suffix in (".py", ".so", ".pth")} | set(graph.folders)
    kept: list[Path] = []
    for folder in sorted(wanted):
        if not any(folder.is_relative_to(above) for above in kept):
            kept.append(folder)
    return [str(folder) for folder in kept]


def _argv(graph: FileGraph, settings: Settings) -> tuple[str, ...]:
    python = str(graph.python)
    match settings.kind:
        case Kind.COORDINATOR:
            return (python, "-P", "-m", "marblemesh", "coordinator")
        case Kind.WORKER:
            return (python, "-P", "-m", "marblemesh", "proxy", "run", "--", *settings.command)
        case Kind.FUSED:
            # Without -P: the app shall find the modules beside it, as it does everywhere.
            return (python, "-m", "marblemesh", "proxy", "run", "--fused", "--", *settings.command)


def _environment(graph: FileGraph, settings: Settings) -> dict[str, str]:
    places = sorted({str(path.parent) for path in graph.libraries if "site-packages" not in path.parts})
    env = {
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": ":".join(("/lib", *places)),
        "MALLOC_ARENA_MAX": "1",
        "PATH": str(graph.python.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        **_DEVICE,
    }
    if graph.roots is not None:
        env["SSL_CERT_FILE"] = str(graph.roots)
    if settings.kind is Kind.COORDINATOR:
        env["EDG_COORDINATOR_SEAL_DIR"] = str(PurePosixPath(settings.data_dir) / "state")
    else:
        env["EDG_MARBLE_TYPE"] = settings.marble_type or ""
        env["EDG_MARBLE_RUN_DIR"] = RUN_DIR
        env["EDG_MARBLE_UUID_FILE"] = str(PurePosixPath(settings.data_dir) / "uuid-file")
        if settings.era_config is not None:
            env["EDG_MARBLE_ERA_CONFIG"] = ERA_CONFIG
    return {**env, **settings.env}


def _check(trusted: Iterable[str], settings: Settings) -> None:
    data = PurePosixPath(settings.data_dir)
    if not data.is_absolute() or len(data.parts) < 2 or ".." in data.parts:
        raise GramineError(f"{settings.data_dir!r} is not the absolute path of a folder of its own")
    for name in trusted:
        if not name.isprintable():
            raise GramineError(f"{name!r} has a character that a manifest cannot hold: rename it")
        if PurePosixPath(name).is_relative_to(data):
            raise GramineError(
                f"{name!r} lies in {settings.data_dir!r}, which the host may write: code must lie elsewhere"
            )
