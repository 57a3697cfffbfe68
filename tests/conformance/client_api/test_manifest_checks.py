# SPDX-License-Identifier: Apache-2.0
"""Section 6, the manifest's checks, as an operator meets them: curl, real TLS, and the message for each mistake.

The cases are those of the rules' own tests; here they travel.
"""

from __future__ import annotations

import json

import pytest

from tests.kit.deployment import Api, b64
from tests.unit.manifests.test_checks import MARBLERUN


@pytest.mark.parametrize("name", MARBLERUN)
async def test_each_mistake_is_answered_with_its_message_and_sets_nothing(name: str, fresh: Api) -> None:
    document, message = MARBLERUN[name]
    answer = await fresh.post("/api/v2/manifest", {"manifest": b64(json.dumps(document).encode())})
    assert (answer.status, answer.json["status"], answer.json["data"]) == (500, "error", None)
    assert answer.message.startswith(f"checking manifest: {message}")
    assert (await fresh.get("/api/v2/status")).data["code"] == 2


async def test_a_syntax_error_is_named_with_line_and_column(fresh: Api) -> None:
    answer = await fresh.post("/manifest", b'{\n  "Packages": {\n')
    assert answer.status == 400
    assert answer.message.startswith("unmarshaling manifest: line 3 column 1: ")


@pytest.mark.parametrize("path", ["/api/v2/manifest", "/manifest"])
async def test_unknown_members_are_ignored_and_kept_to_the_byte(path: str, fresh: Api) -> None:
    """The public emojivoto manifest has a member `Clients` that means nothing."""
    raw = b'{"Clients": {}, "packages": {"p": {"UniqueID": "%s"}}, "MARBLES": {"m": {"package": "p"}}}' % (b"ab" * 32)
    body: bytes | dict[str, object] = raw if path == "/manifest" else {"manifest": b64(raw)}
    assert (await fresh.post(path, body)).status == 200
    assert (await fresh.get("/api/v2/manifest")).data["manifest"] == b64(raw)
