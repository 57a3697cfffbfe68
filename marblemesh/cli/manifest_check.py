# SPDX-License-Identifier: Apache-2.0
"""A manifest checked before it is sent: the Coordinator's rules and templates, and problems where editors find them."""

from __future__ import annotations

from manifests.errors import ManifestError, ManifestSyntaxError
from manifests.model import Manifest
from manifests.package_update import package_update
from manifests.parse import parse
from manifests.template_check import template_problems
from marblemesh.cli.errors import CliError
from marblemesh.cli.manifest_file import ManifestFile
from marblemesh.cli.trust import warn


def checked(raw: bytes) -> Manifest:
    """A whole manifest, with its templates tried as the Coordinator tries them. Raises ManifestError."""
    manifest = parse(raw)
    if problems := tuple(template_problems(manifest)):
        raise ManifestError(problems)
    return manifest


def require_valid(document: ManifestFile) -> None:
    """Print warnings; raise CliError, in one line, if a Coordinator would not take it."""
    try:
        manifest = checked(document.raw)
    except ManifestError as error:
        raise _refusal(document, error) from None
    for warning in manifest.warnings:
        warn(f"{document.path}: {warning}")


def require_valid_update(document: ManifestFile) -> None:
    """The same for an update, of which one that only raises SecurityVersions is no whole manifest."""
    try:
        packages = package_update(document.raw)
    except ManifestError as error:
        raise _refusal(document, error) from None
    if packages is None:
        require_valid(document)


def described(document: ManifestFile, error: ManifestError) -> list[str]:
    """A line for each problem: `file: …`, or `file:line:column: …` as compilers write it and editors jump to."""
    if isinstance(error, ManifestSyntaxError):
        text = error.problems[0].message.partition(": ")[2]
        return [f"{document.path}:{error.line}:{error.column}: invalid JSON: {text}"]
    return [f"{document.path}: {problem}" for problem in error.problems]


def _refusal(document: ManifestFile, error: ManifestError) -> CliError:
    lines = described(document, error)
    return CliError(lines[0] if isinstance(error, ManifestSyntaxError) else f"{document.path}: {error}")
