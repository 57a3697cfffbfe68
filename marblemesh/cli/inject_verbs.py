# SPDX-License-Identifier: Apache-2.0
"""`marblemesh inject` and `uninject`: Kubernetes objects in, the same with Marbles in them out, a report on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file
from marblemesh.cli.inject_options import InjectSettings, with_inject_settings
from marblemesh.cli.output import Format, print_json
from marblemesh.inject.errors import Refused, printable
from marblemesh.inject.report import Level, ObjectReport, Outcome
from marblemesh.inject.stream import MAX_TEXT, Progress, Result, inject_stream, uninject_stream

InputFile = Annotated[
    Path, typer.Option("--filename", "-f", metavar="FILE", help="YAML or JSON of Kubernetes; - is stdin.")
]
ReportFormat = Annotated[
    Format, typer.Option("--output", "-o", help="Of the report, which goes to stderr: text, or json for programs.")
]
_STDIN = Path("-")
# Characters of one line of the report: manifests are other people's.
_SHOWN = 2000
_PATIENCE = 2.0


@with_inject_settings()
def inject(
    injection: InjectSettings,
    file: InputFile = _STDIN,
    marble: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TYPE", help="Make the workload NAME a Marble of this TYPE; repeatable."),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Of objects that name none. Default: each pod finds out by itself."),
    ] = None,
    output: ReportFormat = Format.TEXT,
) -> None:
    """Put what Marbles need into Kubernetes manifests: variables, identity, SGX, probes, ports, Linkerd's marks.

    Workloads with the label marblerun/marbletype become Marbles, and those named by --marble. What a pod has already
    stays as it is, and so does all text that need not change: comments, order, line ends. Injecting twice is injecting
    once, with the flags of the second time; `uninject` gives the original back. Before or after `linkerd inject`.

    Exit status 1, and no output, if one of them cannot be a Marble.
    """
    named = _marbles(marble or ())
    result = _guarded(
        lambda text: inject_stream(
            text, injection.settings, marbles=named, namespace=namespace, progress=_progress(output)
        ),
        file,
    )
    _finish(result, output)


def uninject(file: InputFile = _STDIN, output: ReportFormat = Format.TEXT) -> None:
    """Take out of Kubernetes manifests what `inject` has put in, by the annotation that says what that was."""
    _finish(_guarded(lambda text: uninject_stream(text, progress=_progress(output)), file), output)


def _progress(output: Format) -> Progress:
    """Tells somebody who waits for more than two seconds what is being done."""
    last = time.monotonic()

    def show(what: str) -> None:
        nonlocal last
        if time.monotonic() - last > _PATIENCE and output is Format.TEXT:
            last = time.monotonic()
            typer.echo(f"{what} ...", err=True)

    return show


def _marbles(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, kind = pair.partition("=")
        if not equals or not name or not kind:
            raise typer.BadParameter(f"--marble {pair!r} is not NAME=TYPE")
        if found.setdefault(name, kind) != kind:
            raise typer.BadParameter(f"--marble gives {name!r} two types")
    return found


def _guarded(do: Any, file: Path) -> Result:
    raw = _read(file)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CliError(f"{_name(file)}: byte {error.start} is not UTF-8") from None
    try:
        result: Result = do(text)
    except Refused as error:
        raise CliError(f"{_name(file)}: {error}") from None
    return result


def _read(file: Path) -> bytes:
    if file != _STDIN:
        return read_file(file, "manifest", MAX_TEXT)
    if sys.stdin.isatty():
        typer.echo("reading Kubernetes objects from the terminal: Ctrl-D ends them, --filename names a file", err=True)
    raw = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise CliError(f"stdin has more than {MAX_TEXT} bytes")
    if not raw.strip():
        raise CliError("stdin is empty: pipe Kubernetes objects in, or give a file with --filename")
    return raw


def _name(file: Path) -> str:
    return "stdin" if file == _STDIN else str(file)


def _finish(result: Result, output: Format) -> None:
    sys.stdout.buffer.write(result.text.encode())
    sys.stdout.buffer.flush()
    if output is Format.JSON:
        print_json({"objects": [report.as_json() for report in result.reports]}, err=True)
        return
    for report in result.reports:
        if report.outcome is not Outcome.COPIED:
            _show(report)
    if others := Counter(
        printable(report.kind, _SHOWN) for report in result.reports if report.outcome is Outcome.COPIED
    ):
        typer.echo(f"copied: {', '.join(f'{count} {kind}' for kind, count in sorted(others.items()))}", err=True)


def _show(report: ObjectReport) -> None:
    typer.echo(f"{printable(f'{report.kind.lower()}/{report.name}', _SHOWN)}: {report.outcome.value}", err=True)
    for note in report.notes:
        text = printable(note.text, _SHOWN)
        if note.level is Level.WARNING:
            typer.secho(f"  warning: {text}", fg=typer.colors.YELLOW, err=True)
        elif note.level is Level.LEFT and report.outcome is not Outcome.LEFT_ALONE:
            typer.echo(f"  left alone: {text}", err=True)
        else:
            typer.echo(f"  {'+ ' if note.level is Level.ADDED else ''}{text}", err=True)
