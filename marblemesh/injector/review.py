# SPDX-License-Identifier: Apache-2.0
"""One AdmissionReview (admission.k8s.io/v1 or v1beta1) answered: bytes in, bytes out, whatever the bytes are.

A pod is patched, or denied with the reason. What is no review at all is answered with a status only; the API server
takes that as a failed webhook, and its failure policy decides.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from marblemesh.inject.changes import difference
from marblemesh.inject.errors import Refused
from marblemesh.inject.names import UUID_VOLUME
from marblemesh.inject.pod import inject_pod
from marblemesh.inject.report import Level, Note
from marblemesh.inject.settings import Settings

# An API server takes no request of more than this.
MAX_BODY = 3 * 1024 * 1024
# A pod with everything in it has 12.
MAX_DEPTH = 64

_VERSIONS = frozenset({"admission.k8s.io/v1", "admission.k8s.io/v1beta1"})
# Kubernetes makes UUIDs; this becomes part of a volume's name, which has 63 characters.
_UID = re.compile(r"[0-9a-z](?:[-0-9a-z]{0,46}[0-9a-z])?")
# Kubernetes cuts what is longer, and drops what is too much.
_MAX_WARNINGS = 8
_MAX_WARNING = 240


class Verdict(StrEnum):
    """PASSED: allowed as it is. MALFORMED: no review, or none of a version that is spoken here."""

    PATCHED = "patched"
    PASSED = "passed"
    DENIED = "denied"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Answer:
    """`reason` is for logs: why it was denied, or is malformed."""

    verdict: Verdict
    status: HTTPStatus
    body: bytes
    reason: str = ""


def review(body: bytes, settings: Settings) -> Answer:
    """Answer one request body. Never raises."""
    try:
        document = _json(body)
        version = document.get("apiVersion")
        if document.get("kind") != "AdmissionReview" or version not in _VERSIONS:
            raise _Malformed("want an AdmissionReview of admission.k8s.io/v1 or v1beta1")
        request = document.get("request")
        if not isinstance(request, dict):
            raise _Malformed("request is missing")
        uid = request.get("uid")
        if not isinstance(uid, str) or not _UID.fullmatch(uid):
            raise _Malformed("request.uid is no UID")
        verdict, response, reason = _response(request, uid, settings)
    except _Malformed as error:
        return Answer(Verdict.MALFORMED, HTTPStatus.BAD_REQUEST, b"malformed AdmissionReview\n", str(error))
    answer = {"apiVersion": version, "kind": "AdmissionReview", "response": {"uid": uid, **response}}
    return Answer(verdict, HTTPStatus.OK, json.dumps(answer).encode(), reason)


class _Malformed(ValueError):
    """The request is none; `str()` says why, for the log."""


def _response(request: dict[str, Any], uid: str, settings: Settings) -> tuple[Verdict, dict[str, Any], str]:
    resource = request.get("resource")
    pods = {"group": "", "version": "v1", "resource": "pods"}
    if resource != pods or request.get("subResource") or request.get("operation") != "CREATE":
        return Verdict.PASSED, {"allowed": True}, ""
    pod, namespace = request.get("object"), request.get("namespace")
    if not isinstance(pod, dict):
        raise _Malformed("request.object is no pod")
    try:
        injected = inject_pod(
            pod,
            settings,
            uuid_volume=f"{UUID_VOLUME}-{uid}",
            namespace=namespace if isinstance(namespace, str) and namespace else None,
        )
    except Refused as error:
        status = {"code": int(HTTPStatus.FORBIDDEN), "message": str(error)}
        return Verdict.DENIED, {"allowed": False, "status": status}, str(error)
    patch = [change.as_json() for change in difference(pod, injected.template)]
    response: dict[str, Any] = {"allowed": True}
    if patch:
        encoded = base64.b64encode(json.dumps(patch).encode()).decode()
        response |= {"patchType": "JSONPatch", "patch": encoded}
    if warnings := _warnings(injected.notes):
        response["warnings"] = warnings
    return Verdict.PATCHED if patch else Verdict.PASSED, response, ""


def _warnings(notes: tuple[Note, ...]) -> list[str]:
    """What kubectl shows to whoever created the pod."""
    texts = [f"marblemesh: {note.text}"[:_MAX_WARNING] for note in notes if note.level is Level.WARNING]
    return texts[:_MAX_WARNINGS]


def _json(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY:
        raise _Malformed("the body is too long")
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of thousands of digits, or nested without end
        raise _Malformed("the body is no JSON") from None
    if not isinstance(document, dict):
        raise _Malformed("the body is no JSON object")
    _bound_depth(document)
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _bound_depth(document: Any) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _Malformed(f"the body is nested deeper than {MAX_DEPTH}")
