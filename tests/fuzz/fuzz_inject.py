# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever the bytes, the webhook answers, and manifests are injected the same twice or refused.

python tests/fuzz/fuzz_inject.py      under atheris: make fuzz
"""

from __future__ import annotations

import base64
import json
from http import HTTPStatus
from pathlib import Path

from marblemesh.inject.errors import Refused
from marblemesh.inject.settings import Settings
from marblemesh.inject.stream import inject_stream, uninject_stream
from marblemesh.injector.review import Verdict, review
from tests.fuzz.driver import run
from tests.kit.pods import pod, review_of

_SETTINGS = Settings()


def fuzz_one(data: bytes) -> None:
    _review(data)
    try:
        text = data.decode()
        once = inject_stream(text, _SETTINGS).text
    except (Refused, UnicodeDecodeError):
        return
    if once == text:
        return
    if inject_stream(once, _SETTINGS).text != once:
        raise AssertionError("injecting again changed something")
    uninject_stream(once)


def _review(data: bytes) -> None:
    answer = review(data, _SETTINGS)
    if (answer.verdict is Verdict.MALFORMED) != (answer.status is HTTPStatus.BAD_REQUEST):
        raise AssertionError(f"{answer.verdict} with status {answer.status}")
    if answer.verdict is Verdict.MALFORMED:
        return
    response = json.loads(answer.body)["response"]
    if response["allowed"] == (answer.verdict is Verdict.DENIED):
        raise AssertionError("the answer does not say what was decided")
    if answer.verdict is Verdict.PATCHED:
        json.loads(base64.b64decode(response["patch"], validate=True))


if __name__ == "__main__":
    data = Path(__file__).resolve().parents[1] / "data" / "kubernetes"
    run(fuzz_one, [review_of(pod()), *(path.read_bytes() for path in sorted(data.iterdir()))])
