# SPDX-License-Identifier: Apache-2.0
"""`marblemesh demo`: the command line, the terminal, and the only reader of the environment.

Exit status: 0 when all went well (for the live demo: when it was ended), 1 with one line that says what did not, 2 for
a wrong option, 130 when `--once` was interrupted.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from marblemesh.demo import view
from marblemesh.demo.envoy_binary import envoy_path
from marblemesh.demo.errors import DemoError
from marblemesh.demo.observe import Now
from marblemesh.demo.result import Result, summary
from marblemesh.demo.state_dir import default_state_dir
from marblemesh.demo.steps.run import Settings, run_live, run_once
from marblemesh.demo.steps.world import Wish
from marblemesh.demo.topology import Paths
from sds.command_line import run as run_program

ONCE_VOTES = 200
# 200 votes in eight seconds: long enough for several rotations, short enough to wait for.
ONCE_RATE = 25.0
LIVE_RATE = 5.0
INTERRUPTED = 130
# Without a terminal the view is a line now and then.
LINE_SECONDS = 10.0


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Drive votes through, check everything, and exit.", show_default=False)
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to say the result.")] = Output.TEXT,
    votes: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help=f"Votes to send. Default {ONCE_VOTES} with --once, else endless."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help=f"Votes a second at most, 0: no limit. Default {ONCE_RATE:g} with --once, else {LIVE_RATE:g}.",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where everything is written. Default ~/.local/state/marblemesh/demo.")
    ] = None,
    keep_logs: Annotated[Path | None, typer.Option(help="Copy the processes' logs to this directory.")] = None,
) -> None:
    """Run a confidential emojivoto: four attested Marbles, a real Envoy inside one and another outside, Prometheus.

    Attestation is simulated, so it proves nothing about this machine; everything else is real. Until Ctrl-C it shows
    who is attested, how old the certificates are, connections and votes. The logs stay in the state directory.
    """
    default_votes, default_rate = (ONCE_VOTES, ONCE_RATE) if once else (0, LIVE_RATE)
    wish = Wish(default_votes if votes is None else votes, default_rate if rate is None else rate)
    terminal = _Terminal(output)
    result, started = Result(), time.monotonic()
    status = 0
    try:
        settings = Settings(
            paths=Paths((state_dir or default_state_dir(os.environ)).absolute()),
            python=sys.executable,
            envoy=envoy_path(),
            prometheus=shutil.which("prometheus"),
            env=os.environ,
        )
        with terminal:
            running = (
                run_once(settings, wish, result, terminal.say)
                if once
                else run_live(settings, wish, result, terminal.say, terminal.show)
            )
            asyncio.run(_until_interrupted(running))
    except asyncio.CancelledError:
        if once:
            result.error, status = "interrupted", INTERRUPTED
    except DemoError as error:
        result.error, result.log_lines, status = str(error), error.log_lines, 1
    result.durations["total"] = round(time.monotonic() - started, 3)
    _copy_logs(result, keep_logs)
    terminal.finish(result)
    raise typer.Exit(status)


async def _until_interrupted(running: Coroutine[Any, Any, None]) -> None:
    """Run; the first SIGINT, SIGTERM or SIGHUP cancels, later ones find it stopping already (which takes seconds)."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    cancel: Callable[[], object] = task.cancel if task else loop.stop
    cancelled: list[int] = []

    def interrupt(number: int) -> None:
        if not cancelled:
            cancelled.append(number)
            cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    await running


def _copy_logs(result: Result, directory: Path | None) -> None:
    if directory is None or not result.logs:
        return
    try:
        shutil.copytree(result.logs, directory, dirs_exist_ok=True)
    except OSError as error:
        result.error = result.error or f"cannot copy the logs to {directory}: {error}"
    else:
        result.logs = str(directory)


class _Terminal:
    """Progress, the live view, the result. With JSON output everything but the result goes to standard error."""

    def __init__(self, output: Output) -> None:
        self._json = output is Output.JSON
        self._console = Console(stderr=self._json, highlight=False)
        self._started = datetime.now(UTC)
        self._stack = ExitStack()
        self._live: Live | None = None
        self._said = 0.0

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """One step of the start is done."""
        elapsed = (datetime.now(UTC) - self._started).total_seconds()
        self._console.print(f"{elapsed:5.1f} s  {text}", soft_wrap=True, markup=False)

    def show(self, now: Now) -> None:
        """The newest view."""
        if self._console.is_terminal and not self._json:
            if self._live is None:
                self._live = self._stack.enter_context(Live(console=self._console, auto_refresh=False))
            self._live.update(view.render(now, self._started), refresh=True)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self.say(view.line(now))

    def finish(self, result: Result) -> None:
        """The result, or why there is none."""
        if self._json:
            with suppress(BrokenPipeError):
                sys.stdout.write(json.dumps(result.to_json(), indent=2) + "\n")
                sys.stdout.flush()
        if result.error:
            self._explain(result)
        elif not self._json:
            for line in summary(result):
                self._console.print(line, soft_wrap=True, markup=False)

    def _explain(self, result: Result) -> None:
        error = Console(stderr=True, highlight=False)
        error.print(f"error: {result.error}", soft_wrap=True, markup=False)
        for line in result.log_lines:
            error.print(f"  | {line}", soft_wrap=True, markup=False)
        if result.log_lines:
            error.print(f"logs: {result.logs}", soft_wrap=True, markup=False)


def main() -> None:
    """Entry point behind `marblemesh demo`."""
    sys.exit(run_program(app, sys.argv[2:], "marblemesh demo"))


if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
