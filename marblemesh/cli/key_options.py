# SPDX-License-Identifier: Apache-2.0
"""The flags that say who asks: a user's certificate and key, or a recovery key; from files or on a PKCS#11 token.

A verb asks by a parameter and a decorator: `identity: Identified` with `with_identity`, `key: RecoveryKeySource` with
`with_recovery_key`. Both are thunks: files and tokens are read when the verb gets to it, and their errors are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file
from marblemesh.cli.injected import Options, injected
from marblemesh.client import (
    ClientError,
    ClientIdentity,
    PemRecoveryKey,
    RecoveryKey,
    TokenConfig,
    TokenIdentity,
    TokenObject,
    TokenRecoveryKey,
    identity_from_pem,
)
from marblemesh.client.token_config import MAX_TOKEN_CONFIG

Identified = Callable[[], ClientIdentity]
RecoveryKeySource = Callable[[], RecoveryKey]

_USER = "Who you are: --cert and --key, or --pkcs11-config"
_RECOVERY = "Your recovery key: --key, or --pkcs11-config"
_MAX_PEM = 64 * 1024


def _option(names: tuple[str, ...], text: str, panel: str, kind: Any = str, metavar: str = "TEXT") -> tuple[Any, Any]:
    return Annotated[kind | None, typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)], None


def _file(names: tuple[str, ...], text: str, panel: str) -> tuple[Any, Any]:
    return _option(names, text, panel, Path, "FILE")


def _token_options(panel: str) -> Options:
    return {
        "pkcs11_config": _file(
            ("--pkcs11-config",), "JSON with Path, Pin and TokenSerial, TokenLabel or SlotNumber.", panel
        ),
        "pkcs11_key_id": _option(("--pkcs11-key-id",), "Id of the private key on the token.", panel),
        "pkcs11_key_label": _option(("--pkcs11-key-label",), "Label of the private key on the token.", panel),
    }


_IDENTITY_OPTIONS: Options = {
    "cert": _file(("--cert", "-c"), "Your certificate as the manifest names it, PEM.", _USER),
    "key": _file(("--key", "-k"), "The certificate's private key, PEM.", _USER),
    **_token_options(_USER),
    "pkcs11_cert_id": _option(("--pkcs11-cert-id",), "Id of the certificate on the token.", _USER),
    "pkcs11_cert_label": _option(("--pkcs11-cert-label",), "Label of the certificate on the token.", _USER),
}
_KEY_OPTIONS: Options = {
    "key": _file(("--key", "-k"), "Your private recovery key, PEM.", _RECOVERY),
    **_token_options(_RECOVERY),
}


def _identity(_ctx: typer.Context, values: dict[str, Any]) -> Identified:
    cert, key, config = values["cert"], values["key"], values["pkcs11_config"]
    _refuse_mixture(values, files=("cert", "key"))
    if config is not None:
        named = _object(values, "cert"), _object(values, "key")
        return lambda: TokenIdentity(_config(config), certificate=named[0], key=named[1])
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key belong together")
    if cert is None or key is None:
        raise typer.BadParameter("who are you? Give --cert and --key, or --pkcs11-config with a key and a certificate")
    return lambda: _from_files(cert, key)


def _recovery_key(_ctx: typer.Context, values: dict[str, Any]) -> RecoveryKeySource:
    key, config = values["key"], values["pkcs11_config"]
    _refuse_mixture(values, files=("key",))
    if config is not None:
        named = _object(values, "key")
        return lambda: TokenRecoveryKey(_config(config), named)
    if key is None:
        return _no_key
    return lambda: _recovery_key_from_file(key)


def _no_key() -> RecoveryKey:
    raise CliError("this takes your recovery key: give --key FILE, or --pkcs11-config with --pkcs11-key-id or -label")


with_identity: Callable[[Callable[..., None]], Callable[..., None]] = injected("identity", _IDENTITY_OPTIONS, _identity)
with_recovery_key: Callable[[Callable[..., None]], Callable[..., None]] = injected("key", _KEY_OPTIONS, _recovery_key)


def _refuse_mixture(values: dict[str, Any], *, files: tuple[str, ...]) -> None:
    given = [name for name, value in values.items() if value is not None]
    on_token = [name for name in given if name.startswith("pkcs11_")]
    if values["pkcs11_config"] is not None and (both := [name for name in files if name in given]):
        raise typer.BadParameter(f"--pkcs11-config and --{both[0]} exclude each other: the key is here or there")
    if values["pkcs11_config"] is None and on_token:
        raise typer.BadParameter(f"--{on_token[0].replace('_', '-')} needs --pkcs11-config")


def _object(values: dict[str, Any], what: str) -> TokenObject:
    """The key (`key`) or certificate (`cert`) that flags name; an id is the bytes of the text."""
    number, label = values[f"pkcs11_{what}_id"], values[f"pkcs11_{what}_label"]
    if not number and not label:
        raise typer.BadParameter(f"--pkcs11-config needs --pkcs11-{what}-id or --pkcs11-{what}-label")
    return TokenObject(number.encode("utf-8", "surrogateescape") if number else None, label or None)


def _config(path: Path) -> TokenConfig:
    try:
        return TokenConfig.parse(read_file(path, "PKCS#11 config", MAX_TOKEN_CONFIG))
    except ClientError as error:
        raise CliError(f"{path}: {error}") from None


def _from_files(cert: Path, key: Path) -> ClientIdentity:
    certificate, private = read_file(cert, "client certificate", _MAX_PEM), read_file(key, "private key", _MAX_PEM)
    try:
        return identity_from_pem(certificate, private)
    except ClientError as error:
        raise CliError(f"{cert} and {key}: {error}") from None


def _recovery_key_from_file(path: Path) -> RecoveryKey:
    try:
        return PemRecoveryKey.from_pem(read_file(path, "recovery key", _MAX_PEM))
    except ClientError as error:
        raise CliError(f"{path}: {error}") from None
