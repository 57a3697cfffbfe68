# SPDX-License-Identifier: Apache-2.0
"""Files that the user names: read within bounds, written whole or not at all, every failure in one line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from marblemesh.cli.errors import CliError


def read_file(path: Path, what: str, limit: int) -> bytes:
    """The whole file, at most `limit` bytes. Raises CliError that names file and cause."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CliError(f"cannot read {what} {str(path)!r}: {_reason(error)}") from None
    except ValueError:  # a NUL in the path
        raise CliError(f"cannot read {what}: invalid file name {str(path)!r}") from None
    if len(data) > limit:
        raise CliError(f"{what} {str(path)!r} has more than {limit} bytes")
    if not data.strip():
        raise CliError(f"{what} {str(path)!r} is empty")
    return data


def write_file(path: Path, what: str, data: bytes, *, make_folders: bool = False) -> None:
    """Replace the file by `data`, so that no reader sees half of it. Raises CliError."""
    try:
        if make_folders:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            # A device or a pipe cannot be replaced by renaming; a directory is refused here, with its own reason.
            path.write_bytes(data)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CliError(f"cannot write {what} to {str(path)!r}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
