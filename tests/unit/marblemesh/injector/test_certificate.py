# SPDX-License-Identifier: Apache-2.0
"""The webhook's certificate and key: which file is wrong, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from marblemesh.injector.certificate import CertificateError, ServedCertificate
from tests.kit.injector import certificate_pair

CERTIFICATE, KEY = certificate_pair("webhook")
ENCRYPTED = load_pem_private_key(KEY, None).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
)


@pytest.mark.parametrize(
    ("certificate", "key", "why"),
    [
        (None, KEY, "cannot read {0}: No such file or directory"),
        (CERTIFICATE, None, "cannot read {1}: No such file or directory"),
        (b"", KEY, "--tls-cert-file {0}: is no certificate in PEM"),
        (KEY, KEY, "--tls-cert-file {0}: is no certificate in PEM"),
        (CERTIFICATE, CERTIFICATE, "--tls-key-file {1}: is no private key in PEM"),
        (CERTIFICATE, certificate_pair("other")[1], "--tls-key-file {1}: is not the key of --tls-cert-file {0}"),
        (CERTIFICATE, ENCRYPTED, "--tls-key-file {1}: the key is encrypted"),
    ],
)
def test_what_is_wrong_is_said_of_the_file_that_it_is_wrong_with(
    tmp_path: Path, certificate: bytes | None, key: bytes | None, why: str
) -> None:
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    for path, data in zip(files, (certificate, key), strict=True):
        if data is not None:
            path.write_bytes(data)
    with pytest.raises(CertificateError) as refused:
        ServedCertificate(*files, lambda _: None)
    assert str(refused.value) == why.format(*files)
