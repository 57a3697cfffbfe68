# SPDX-License-Identifier: Apache-2.0
"""The update log: who changed what, one JSON object per line, part of the persistent state and public.

Texts, member names and their order are MarbleRun's; `"new version"` really has a blank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from xds_server.records import Records


def logged(records: Records, now: datetime, update: str, **fields: object) -> Records:
    """The records with one more entry; `now` aware."""
    time = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = json.dumps({"time": time, "update": update, **fields}, separators=(",", ":"), ensure_ascii=False)
    return replace(records, update_log=(*records.update_log, entry))


def manifest_set(records: Records, now: datetime) -> Records:
    return logged(records, now, "Initial manifest set")


def security_version_increased(records: Records, now: datetime, user: str, package: str, version: int) -> Records:
    fields: dict[str, object] = {"user": user, "package": package, "new version": version}
    return logged(records, now, "SecurityVersion increased", **fields)


def secret_set(records: Records, now: datetime, user: str, secret: str, kind: str) -> Records:
    return logged(records, now, "Secret set", user=user, secret=secret, type=kind)


def update_initiated(records: Records, now: datetime, user: str, fingerprint: str) -> Records:
    """By one whose agreement is all that is needed."""
    text = "Complete Manifest update initiated by user. No further acknowledgements required"
    return logged(records, now, text, user=user, manifestFingerprint=fingerprint)


def update_waits(records: Records, now: datetime, user: str, missing: tuple[int, Sequence[str]], fp: str) -> Records:
    text = "Complete Manifest update initiated by user. Waiting for acknowledgments to apply the update"
    return logged(records, now, text, **_missing(user, missing, fp))


def update_acknowledged(
    records: Records, now: datetime, user: str, missing: tuple[int, Sequence[str]], fp: str
) -> Records:
    return logged(records, now, "Complete Manifest update acknowledged by user", **_missing(user, missing, fp))


def update_applied(records: Records, now: datetime, fingerprint: str) -> Records:
    return logged(records, now, "Complete Manifest updated", manifestFingerprint=fingerprint)


def update_cancelled(records: Records, now: datetime, user: str, fingerprint: str) -> Records:
    text = "Complete Manifest update cancelled by user"
    return logged(records, now, text, user=user, manifestFingerprint=fingerprint)


def update_failed(records: Records, now: datetime, fingerprint: str) -> Records:
    text = "Complete Manifest update cancelled due to error during apply"
    return logged(records, now, text, manifestFingerprint=fingerprint)


def _missing(user: str, missing: tuple[int, Sequence[str]], fingerprint: str) -> dict[str, object]:
    count, users = missing
    return {
        "user": user,
        "missingAcknowledgments": count,
        "missingUsers": list(users),
        "manifestFingerprint": fingerprint,
    }
