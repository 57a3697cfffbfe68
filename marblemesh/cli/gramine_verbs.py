# SPDX-License-Identifier: Apache-2.0
"""`marblemesh gramine-manifest`: what an enclave of ours measures, for a given environment and app."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.output import OutputFile, print_json, target, wants_json
from marblemesh.gramine import GramineError, Kind, Plan, Program, Settings, make_plan, render, walk
from marblemesh.gramine.libraries import is_elf
from marblemesh.gramine.plan import RUNTIME

_STATE = "/coordinator/data"
_ROOTS = {
    Kind.COORDINATOR: ("xds_server.__main__",),
    Kind.WORKER: ("enclave_proxy.__main__",),
    Kind.FUSED: ("enclave_proxy.__main__",),
}
# Started as a file of its own, between worker and app.
_BETWEEN = "enclave_proxy.exec_app"
_SIZE = re.compile(r"([1-9][0-9]*)([KMG])")
_UNIT = {"K": 10, "M": 20, "G": 30}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*")


def gramine_manifest(
    kind: Annotated[Kind, typer.Argument(help="The Coordinator, a worker with an app of any kind, or a fused app.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARG...]", help="The app's arguments. They are measured.")
    ] = None,
    venv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The virtual environment. Default: the one of this command.")
    ] = None,
    app: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The app: a program (worker) or a Python file (fused).")
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="NAME", help="A Python module as the app instead (fused: python -m NAME).")
    ] = None,
    marble_type: Annotated[
        str | None, typer.Option(metavar="NAME", help="The Marble's name in the mesh's manifest. It is measured.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="A module that is loaded by a name made at run time.")
    ] = None,
    trust: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="A further file or folder that the app reads.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable. It is measured.")] = None,
    era_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whom a Marble takes for the Coordinator. It is measured.")
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help=f"The host's folder for state: {_STATE}, or /TYPE-uid for a Marble."),
    ] = None,
    runtime_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where Gramine's build of glibc lies.")] = RUNTIME,
    enclave_size: Annotated[str, typer.Option(metavar="SIZE", help="A power of two, such as 512M or 2G.")] = "1G",
    max_threads: Annotated[int, typer.Option(metavar="N", min=8, max=4096, help="Threads, Gramine's 3 included.")] = 64,
    isvprodid: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="ProductID of the package.")] = 0,
    isvsvn: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="SecurityVersion of the package.")] = 0,
    output: OutputFile = None,
) -> None:
    """Print the Gramine manifest of a Coordinator, a worker or a fused app; gramine-sgx-sign takes it as it is.

    The files that the enclave trusts are those that the program's imports can reach, read by the environment's own
    Python, and their shared libraries; the app itself is read and not run. Render, sign and start on the same image:
    every path is absolute.
    """
    if kind is not Kind.COORDINATOR and (marble_type is None or not _TYPE.fullmatch(marble_type)):
        given = "missing" if marble_type is None else repr(marble_type)
        raise CliError(f"--marble-type is {given}: give the Marble's name in the manifest")
    if kind is Kind.COORDINATOR and (arguments or app or module or marble_type or era_config):
        raise CliError("a Coordinator has no app, no Marble type and nobody to pin: leave these options out")
    python = Path(sys.executable) if venv is None else venv.absolute() / "bin" / "python"
    command = _command(kind, app, module, arguments or [])
    settings = Settings(
        kind=kind,
        data_dir=data_dir or (_STATE if kind is Kind.COORDINATOR else f"/{marble_type}-uid"),
        marble_type=marble_type,
        command=command,
        env=_variables(env or []),
        era_config=_file("--era-config", era_config),
        hosts=Path(str(files("manifests") / "gramine" / "hosts")),
        runtime=runtime_dir.absolute(),
        enclave_size=_checked_size(enclave_size),
        max_threads=max_threads,
        product_id=isvprodid,
        security_version=isvsvn,
    )
    program = Program(
        modules=_ROOTS[kind],
        included=(*(include or ()), *((module,) if module else ()), *((_BETWEEN,) if kind is Kind.WORKER else ())),
        scripts=(app.absolute(),) if app is not None and kind is Kind.FUSED else (),
        executables=(app.absolute(),) if app is not None and kind is Kind.WORKER else (),
        extra=tuple(path for path in trust or () if _file("--trust", path, folder=True)),
    )
    typer.echo(f"reading what {python} can import (some seconds)", err=True)
    try:
        plan = make_plan(walk(python, program), settings)
        text = render((files("manifests") / "gramine" / f"{kind}.manifest.template").read_text(), plan)
    except GramineError as error:
        raise CliError(str(error)) from None
    _print(plan, text, output)
    if not settings.runtime.is_dir():
        typer.echo(
            f"there is no {settings.runtime} here: signing needs Gramine, or its place by --runtime-dir", err=True
        )


def _print(plan: Plan, text: str, output: str | None) -> None:
    if wants_json(output):
        print_json(
            {
                "entrypoint": plan.entrypoint,
                "argv": plan.argv,
                "env": plan.env,
                "passthrough": plan.passed,
                "mounts": [{"path": path, "uri": f"file:{uri}"} for path, uri in plan.mounts],
                "trusted_files": plan.trusted,
                "allowed_files": [plan.data_dir],
            }
        )
        return
    path = target(output, None)
    if path is None:
        typer.echo(text, nl=False)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise CliError(f"cannot write {str(path)!r}: {(error.strerror or 'error').lower()}") from None
    typer.echo(f"{path}: {len(plan.trusted)} trusted files", err=True)


def _command(kind: Kind, app: Path | None, module: str | None, arguments: Sequence[str]) -> tuple[str, ...]:
    match kind:
        case Kind.COORDINATOR:
            return ()
        case Kind.WORKER:
            if app is None or module is not None:
                raise CliError("a worker needs its app: give --app FILE (a Python program: use 'fused')")
            _file("--app", app)
            try:
                if not is_elf(app):
                    raise CliError(f"--app {str(app)!r} is no executable: a Python program goes with 'fused'")
            except GramineError as error:
                raise CliError(str(error)) from None
            return (str(app.absolute()), *arguments)
        case Kind.FUSED:
            if (app is None) == (module is None):
                raise CliError("a fused app is a Python file or a module: give either --app FILE or --module NAME")
            if app is None:
                return ("python", "-m", str(module), *arguments)
            _file("--app", app)
            return ("python", str(app.absolute()), *arguments)


def _file(option: str, path: Path | None, *, folder: bool = False) -> Path | None:
    if path is None:
        return None
    if not (path.is_file() or (folder and path.is_dir())):
        raise CliError(f"{option}: there is no file{' or folder' if folder else ''} {str(path)!r}")
    return path.absolute()


def _variables(entries: Sequence[str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise CliError(f"--env {entry[:80]!r} is not NAME=VALUE")
        variables[name] = value
    return variables


def _checked_size(text: str) -> str:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << _UNIT[match[2]] if match else 0
    if size & (size - 1) or size < 1 << 28:
        raise CliError(f"--enclave-size {text[:40]!r} is no power of two from 256M on, such as 512M or 2G")
    return text
