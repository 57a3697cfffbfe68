# SPDX-License-Identifier: Apache-2.0
"""From uploaded bytes to a manifest that this Coordinator will keep, or a refusal that names what is wrong with it."""

from __future__ import annotations

from manifests.errors import ManifestError, ManifestSyntaxError, Problem
from manifests.model import Manifest
from manifests.parse import parse
from sds.ca import CertificateAuthority
from xds_server.activation import oversized
from xds_server.errors import ManifestRefused
from xds_server.snapshot import Snapshot
from xds_server.snapshot_tls import SnapshotError
from xds_server.unsupported import unsupported

# A manifest of 16 MiB holds 3 000 files of 5 KiB; real ones are below 100 KiB.
MAX_MANIFEST = 16 * 1024 * 1024
_MAX_PROBLEMS = 20  # told to the client; a manifest with more is fixed from the top


def accepted(raw: bytes, ca: CertificateAuthority) -> Manifest:
    """A manifest that is well formed, has no member without effect and can be served under `ca`.

    Raises ManifestRefused in MarbleRun's words: `unmarshaling manifest: …` or `checking manifest: …`.
    """
    if len(raw) > MAX_MANIFEST:
        raise ManifestRefused(f"unmarshaling manifest: {len(raw)} bytes, at most {MAX_MANIFEST} are accepted")
    try:
        manifest = parse(raw)
    except ManifestSyntaxError as e:
        raise ManifestRefused(f"unmarshaling manifest: {e}") from e
    except ManifestError as e:
        raise ManifestRefused(f"checking manifest: {_list(e.problems)}") from e
    problems = (*unsupported(manifest), *oversized(manifest))
    if problems:
        raise ManifestRefused(f"checking manifest: {_list(problems)}")
    try:
        Snapshot(manifest, ca)
    except SnapshotError as e:
        raise ManifestRefused(f"checking manifest: {e}") from e
    return manifest


def _list(problems: tuple[Problem, ...]) -> str:
    shown = "; ".join(str(problem) for problem in problems[:_MAX_PROBLEMS])
    more = len(problems) - _MAX_PROBLEMS
    return f"{shown}; and {more} more" if more > 0 else shown
