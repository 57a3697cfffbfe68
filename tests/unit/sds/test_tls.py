# SPDX-License-Identifier: Apache-2.0
"""TLS contexts: new ones only, strict by default, and no key on any disk."""

from __future__ import annotations

import errno
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from sds.material import Identity, MaterialError
from sds.tls import client_context, server_context
from tests.kit.pki import marble, shared_ca


def test_every_context_is_new_and_speaks_tls_1_3_only() -> None:
    ca = shared_ca()
    identity = marble(ca)
    one = server_context(identity, ca.bundle, require_client_certificate=True)
    two = server_context(identity, ca.bundle, require_client_certificate=True)
    assert one is not two
    assert one.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client_context(identity, ca.bundle).minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_client_always_verifies_and_knows_no_other_root() -> None:
    context = client_context(None, shared_ca().bundle)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_a_server_verifies_what_it_is_told_to() -> None:
    ca = shared_ca()
    identity = marble(ca)
    assert server_context(identity, ca.bundle, require_client_certificate=True).verify_mode is ssl.CERT_REQUIRED
    assert server_context(identity, ca.bundle, require_client_certificate=False).verify_mode is ssl.CERT_OPTIONAL
    assert server_context(identity, None, require_client_certificate=False).verify_mode is ssl.CERT_NONE


def test_client_certificates_cannot_be_required_without_roots() -> None:
    with pytest.raises(MaterialError, match="no trust bundle"):
        server_context(marble(shared_ca()), None, require_client_certificate=True)


def test_no_session_outlives_its_authorisation() -> None:
    context = server_context(marble(shared_ca()), shared_ca().bundle, require_client_certificate=True)
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET


def test_no_key_log_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert client_context(None, shared_ca().bundle).keylog_filename is None


def test_a_key_that_does_not_fit_is_a_material_error() -> None:
    good, other = marble(shared_ca()), marble(shared_ca())
    object.__setattr__(good, "key", other.key)
    with pytest.raises(MaterialError, match="KEY_VALUES_MISMATCH"):
        client_context(good, shared_ca().bundle)


def test_no_descriptor_is_left_open() -> None:
    identity = marble(shared_ca())
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    client_context(identity, shared_ca().bundle)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


@dataclass
class Spy:
    """What a file that is loaded as a certificate chain looked like while it was loaded."""

    seen: bytes = b""
    path: str = ""


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Spy:
    seen = Spy()
    genuine = ssl.SSLContext.load_cert_chain

    def look(context: ssl.SSLContext, certfile: str, password: bytes | None = None) -> None:
        seen.path, seen.seen = certfile, Path(certfile).read_bytes()
        genuine(context, certfile, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return seen


def load(identity: Identity) -> None:
    client_context(identity, shared_ca().bundle)


def test_a_key_goes_through_memory_only(spy: Spy, tmp_path: Path) -> None:
    load(marble(shared_ca()))
    assert spy.path.startswith("/proc/self/fd/")
    assert list(tmp_path.iterdir()) == []


def test_without_memfd_the_key_is_encrypted_and_the_file_removed(
    spy: Spy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    identity = marble(shared_ca())
    load(identity)
    assert spy.path.startswith(str(tmp_path))
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in spy.seen
    assert identity.key.pem.splitlines()[1] not in spy.seen
    assert list(tmp_path.iterdir()) == []
