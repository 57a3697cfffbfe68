# SPDX-License-Identifier: Apache-2.0
"""The update log, and what it says about the manifest: a package update raises a SecurityVersion beyond the manifest's.

The stored manifest does not change then, so whoever wants the versions in force replays the log over it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from marblemesh.cli.errors import CliError

_RAISED = "SecurityVersion increased"
# From here on another manifest is in force, and what was raised before is in it or undone by it.
_REPLACED = frozenset(
    {
        "Complete Manifest updated",
        "Complete Manifest update initiated by user. No further acknowledgements required",
    }
)


def parsed_entry(entry: str) -> dict[str, object]:
    """One line of the log. Raises CliError."""
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CliError("the Coordinator's update log has an entry that is no JSON object")
    return value


def with_security_versions(raw: bytes, entries: Sequence[str]) -> dict[str, object]:
    """The manifest as an object, with the SecurityVersions that the log raised. Raises CliError."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise CliError("the Coordinator's manifest is no JSON object")
    packages = document.get("Packages")
    for name, version in _raised(entries).items():
        package = packages.get(name) if isinstance(packages, dict) else None
        if not isinstance(package, dict):
            raise CliError(f"the update log raises the SecurityVersion of {name[:80]!r}, which the manifest lacks")
        package["SecurityVersion"] = version
    return document


def _raised(entries: Sequence[str]) -> dict[str, int]:
    """The last SecurityVersion by package name."""
    versions: dict[str, int] = {}
    for entry in map(parsed_entry, entries):
        if entry.get("update") in _REPLACED:
            versions.clear()
        elif entry.get("update") == _RAISED:
            package, version = entry.get("package"), entry.get("new version")
            if not isinstance(package, str) or not isinstance(version, int) or isinstance(version, bool):
                raise CliError(f"the update log has an entry {_RAISED!r} without package or new version")
            versions[package] = version
    return versions
