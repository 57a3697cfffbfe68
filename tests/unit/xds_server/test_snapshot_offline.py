# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import timedelta

import pytest

from sds.resources import OFFLINE_NAME, OfflineStart, read_secret
from tests.kit.pushes import snapshot


@pytest.mark.parametrize("allowed", [None, "24h"])
def test_marbles_are_told_how_long_they_may_start_offline_only_where_the_manifest_allows_it(
    allowed: str | None,
) -> None:
    given = snapshot(**({} if allowed is None else {"OfflineStart": allowed})).trusted("web")
    if allowed is None:
        assert OFFLINE_NAME not in given
    else:
        assert read_secret(given[OFFLINE_NAME].body) == (OFFLINE_NAME, OfflineStart(timedelta(hours=24)))
