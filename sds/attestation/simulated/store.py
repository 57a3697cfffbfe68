# SPDX-License-Identifier: Apache-2.0
"""A simulated platform's directory: made once, by whichever process comes first, and read by all.

::

    <directory>/            0700
      lock                  taken while something is made
      identity/             certificates and keys, appears whole by one rename
      sealing.key           what the sealing keys are made from, 32 random bytes; made at their first use
      <fmspc>-<ca>-<tee>.json   collateral, replaced whole by a rename, renewed a week before it runs out

A crash at any instant leaves nothing, or something complete: files are written beside their place, flushed, renamed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sds.attestation.collateral import MAX_COLLATERAL, Collateral, CollateralKey
from sds.attestation.errors import DeviceUnavailable, Malformed
from sds.attestation.simulated.documents import make_collateral
from sds.attestation.simulated.pki import FMSPC, Pair, Pki
from sds.attestation.tee import Tee
from sds.x509_errors import X509_ERRORS

RENEW_BEFORE = timedelta(days=7)
# Making an identity takes milliseconds. Whoever holds the lock this long has been stopped.
_LOCK_TIMEOUT = 30.0
_MAX_FILE = 64 * 1024
_SEALING_SECRET = 32


@dataclass(frozen=True, slots=True)
class PlatformStore:
    """One platform's directory."""

    directory: Path

    def identity(self) -> Pki:
        """Load the platform's keys, or make them if this is the first use.

        :raises DeviceUnavailable: if the directory cannot be used or holds a damaged platform.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._identity.exists():
                with self._lock():
                    if not self._identity.exists():
                        self._create()
        except OSError as e:
            raise DeviceUnavailable(f"simulated platform: cannot use {self.directory}: {e.strerror}") from e
        return self._load()

    def collateral(self, pki: Pki, tee: Tee, now: datetime) -> Collateral:
        """Load the collateral, or make new if it is missing, about to run out, or from a wrong clock's future."""
        if fresh := self._fresh(pki, tee, now):
            return fresh
        try:
            with self._lock():
                if fresh := self._fresh(pki, tee, now):  # another process was faster
                    return fresh
                made = make_collateral(pki, tee, now)
                self._replace(collateral_name(tee), made.to_json().encode())
                return made
        except OSError as e:
            raise DeviceUnavailable(f"simulated platform: cannot write {self.directory}: {e.strerror}") from e

    def sealing_secret(self) -> bytes:
        """32 random bytes of this machine, made at first use.

        :raises DeviceUnavailable: if the directory cannot be used or the secret is damaged.
        """
        path = self.directory / "sealing.key"
        try:
            if not path.exists():
                with self._lock():
                    if not path.exists():
                        self._replace(path.name, os.urandom(_SEALING_SECRET))
            secret = _read(path, _SEALING_SECRET)
        except OSError as e:
            raise DeviceUnavailable(f"simulated platform: cannot use {path}: {e.strerror}") from e
        if len(secret) != _SEALING_SECRET:
            raise DeviceUnavailable(
                f"simulated platform: {path} is damaged (expected {_SEALING_SECRET} bytes); delete it,"
                " and whatever was sealed with it needs recovery"
            )
        return secret

    @property
    def _identity(self) -> Path:
        return self.directory / "identity"

    @staticmethod
    def in_time(collateral: Collateral, now: datetime) -> bool:
        """Neither from a wrong clock's future, nor about to run out."""
        return collateral.tcb_info.issued <= now <= collateral.next_update - RENEW_BEFORE

    def _fresh(self, pki: Pki, tee: Tee, now: datetime) -> Collateral | None:
        """What lies there, unless it must be made anew. It is derived from the keys, so damage to it is no loss."""
        try:
            found = Collateral.from_json(_read(self.directory / collateral_name(tee), MAX_COLLATERAL))
        except (OSError, Malformed):
            return None
        return (
            found
            if self.in_time(found, now) and found.qvl.tcb_info_issuer_chain.startswith(pki.tcb_signing.pem)
            else None
        )

    def _create(self) -> None:
        pki = Pki.create()
        building = Path(tempfile.mkdtemp(prefix=".identity-", dir=self.directory))  # 0700
        try:
            for field in fields(pki):
                pair: Pair = getattr(pki, field.name)
                _write(building / f"{field.name}.pem", pair.pem.encode())
                key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                _write(building / f"{field.name}.key", key)
            _flush(building)
            building.rename(self._identity)
            _flush(self.directory)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            raise

    def _load(self) -> Pki:
        pairs = {field.name: self._load_pair(field.name) for field in fields(Pki)}
        pki = Pki(**pairs)
        issuers = {"platform_ca": pki.root, "pck": pki.platform_ca, "tcb_signing": pki.root}
        for name, issuer in issuers.items():
            try:
                pairs[name].certificate.verify_directly_issued_by(issuer.certificate)
            except (*X509_ERRORS, InvalidSignature) as e:
                raise self._damaged(f"{name}.pem", "it is not issued by this platform") from e
        return pki

    def _load_pair(self, name: str) -> Pair:
        part = f"{name}.pem"
        try:
            certificate = x509.load_pem_x509_certificate(_read(self._identity / part, _MAX_FILE))
            part = f"{name}.key"
            key = load_pem_private_key(_read(self._identity / part, _MAX_FILE), None)
        except OSError as e:
            raise self._damaged(part, e.strerror or str(e)) from e
        except X509_ERRORS as e:
            # The parser's own text is left out: it could quote what it read, and this may be a key.
            raise self._damaged(part, "it cannot be parsed") from e
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise self._damaged(part, "it does not belong to the certificate beside it")
        return Pair(certificate, key)

    def _damaged(self, name: str, why: str) -> DeviceUnavailable:
        return DeviceUnavailable(
            f"simulated platform: {self._identity / name} is damaged ({why});"
            f" delete {self.directory} to get a new platform, and restart everything that used the old one"
        )

    def _replace(self, name: str, data: bytes) -> None:
        descriptor, path = tempfile.mkstemp(prefix=".new-", dir=self.directory)  # 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(path).rename(self.directory / name)
        _flush(self.directory)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time. The file stays: deleting it would let two processes hold two different locks."""
        deadline = time.monotonic() + _LOCK_TIMEOUT
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DeviceUnavailable(
                            f"simulated platform: another process has held {self.directory / 'lock'} for"
                            f" {_LOCK_TIMEOUT:.0f} s; find and end it"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)


def collateral_name(tee: Tee) -> str:
    """The file's name in the platform's directory, which is therefore a collateral directory too."""
    return f"{CollateralKey(FMSPC, 'platform', tee)}.json"


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(directory: Path) -> None:
    """A rename is only durable once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
