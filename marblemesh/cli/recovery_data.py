# SPDX-License-Identifier: Apache-2.0
"""Recovery secrets that a Coordinator hands out only once: written where the user wants, or printed, but never lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import write_file

RecoveryDataFile = Annotated[
    Path | None,
    typer.Option("--recoverydata", "-r", metavar="FILE", help="Where to write the recovery secrets, if any."),
]


class Handed:
    """The secrets after the attempt to write them: `printed` is what must still go to stdout."""

    def __init__(self, secrets: Mapping[str, str], path: Path | None) -> None:
        wrapped = {"RecoverySecrets": dict(secrets)}
        self._problem: CliError | None = None
        self.printed: dict[str, object] = dict(wrapped) if secrets else {}
        self.line = json.dumps(wrapped) if secrets else None
        """For text output."""
        if secrets and path is not None:
            try:
                write_file(path, "the recovery secrets", (json.dumps(wrapped) + "\n").encode())
            except CliError as error:
                self._problem = error  # printed instead: nobody can ask for them again
            else:
                self.printed, self.line = {}, f"Recovery secrets written to {path}"

    def raise_problem(self, done: str) -> None:
        """Once everything is printed: CliError if the file could not be written. `done` says what did work."""
        if self._problem is not None:
            raise CliError(f"{self._problem}; {done}, and the recovery secrets are printed on stdout instead")
