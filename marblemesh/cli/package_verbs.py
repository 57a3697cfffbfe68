# SPDX-License-Identifier: Apache-2.0
"""`marblemesh package-info`: the values of a signed enclave that a manifest's Package names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.output import Format, OutputFormat, print_facts, print_json
from marblemesh.cli.trust import warn
from marblemesh.package_info import PackageInfoError, read_package


def package_info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Gramine's .sig file, an enclave (EGo, Edgeless RT, SGX SDK), or an Occlum instance."
        ),
    ],
    output: OutputFormat = Format.TEXT,
) -> None:
    """Print a signed enclave's UniqueID, SignerID, ProductID and SecurityVersion, after verifying its signature."""
    try:
        found = read_package(path)
    except PackageInfoError as error:
        raise CliError(f"{path}: {error}") from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise CliError(f"cannot read package {str(path)!r}: {reason}") from None
    facts: dict[str, object] = {
        "UniqueID": found.unique_id.hex(),
        "SignerID": found.signer_id.hex(),
        "ProductID": found.product_id,
        "SecurityVersion": found.security_version,
    }
    if found.debug:
        warn("a debug enclave: its memory can be read, and a manifest accepts it only with Debug")
    if output is Format.JSON:
        print_json(facts)
    else:
        print_facts(facts)
