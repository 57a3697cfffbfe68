# SPDX-License-Identifier: Apache-2.0
"""Flags of the webhook that cannot be: one line that says what can, before anything is opened."""

from __future__ import annotations

import pytest

from marblemesh.injector.__main__ import app
from sds.command_line import run

FILES = ("--tls-cert-file", "none.crt", "--tls-key-file", "none.key")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "missing option '--tls-cert-file'"),
        ((*FILES, "--sgx-resource", "amd"), "--sgx-resource: 'amd' is not intel, azure, alibaba, none or a resource"),
        ((*FILES, "--listen", "8443"), "--listen: '8443' is not IP:PORT"),
        ((*FILES, "--listen", ":99999"), "--listen: ':99999' is not IP:PORT"),
        ((*FILES, "--log-format", "xml"), "--log-format: 'xml' is not json or text"),
        ((*FILES, "--linkerd", "opaque"), "--linkerd needs --manifest"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, flags, "marblemesh injector") == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
