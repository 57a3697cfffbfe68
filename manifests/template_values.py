# SPDX-License-Identifier: Apache-2.0
"""What the templates of a manifest see, and the functions that they have beside Go's.

    .MarbleRun   RootCA.Cert · MarbleCert.{Cert,Public,Private} · CoordinatorRoot.Cert · CoordinatorIntermediate.Cert
    .Secrets     <name>.{Cert,Public,Private,Type,Size,Shared,UserDefined,ValidFor}
    .Previous    Secrets, as before the last update that replaced them

    function   files   env   takes                                       gives
    pem        yes     yes   a Cert, Public or Private part              a PEM block
    hex        yes     yes   a part or a secret                          lower-case hex
    base64     yes     yes   a part or a secret                          standard base64 with padding
    raw        yes     -     a part or a secret                          its bytes
    string     -       yes   a secret of type plain, without NUL         its bytes

The bytes of a whole secret are its Public part: the key or data, or for a certificate its public key. Arguments of the
program are never templates, and neither is what the manifest marks with NoTemplates.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from manifests.model import FileValue, Marble, SecretType
from manifests.template import FunctionError, Struct, Table, Template, Uint, Value, parse

Functions = Mapping[str, Callable[[Value], Value]]

# In place of values that do not exist yet when a manifest is tried: MarbleRun's choice, the letter A.
DUMMY = b"A"
# Of all templates of a manifest together: parsing 2 MiB of the smallest actions takes 8 seconds, and nobody has more.
MAX_TEMPLATES = 2 * 1024 * 1024
# Work for all templates of a manifest, in the template engine's unit: at worst 2 seconds.
MANIFEST_WORK = 1024 * 1024 * 1024

# Parsed templates are kept by text: 256 of at most 8 KiB, each about 20 times as large when parsed: 40 MiB at worst.
_CACHED_TEMPLATES = 256
_CACHED_SIZE = 8 * 1024
_EMPTY = "tried to parse secret with empty value"


class Part(bytes):
    """A part of a secret; `block` is what its PEM is called."""

    block: str

    def __new__(cls, data: bytes, block: str) -> Part:
        part = super().__new__(cls, data)
        part.block = block
        return part

    def __repr__(self) -> str:
        return f"Part({self.block}, {len(self)} bytes)"


@dataclass(frozen=True, slots=True)
class SecretValue(Struct):
    """A whole secret, as a template sees it."""

    @property
    def raw(self) -> Value:
        return self.fields["Public"]


def secret_value(
    kind: str,
    *,
    size: int = 0,
    shared: bool = False,
    user_defined: bool = False,
    valid_for: int = 0,
    certificate: bytes = b"",
    private: bytes = b"",
    public: bytes = b"",
) -> SecretValue:
    """A secret; `kind` is its type as in the manifest."""
    fields: dict[str, Value] = {
        "Type": kind,
        "Size": Uint(size),
        "Shared": shared,
        "UserDefined": user_defined,
        "Cert": Part(certificate, "CERTIFICATE"),
        "ValidFor": Uint(valid_for),
        "Private": Part(private, "PRIVATE KEY"),
        "Public": Part(public, "PUBLIC KEY"),
    }
    return SecretValue("Secret", fields)


def template_data(
    secrets: Mapping[str, SecretValue], previous: Mapping[str, SecretValue], marblerun: Mapping[str, SecretValue]
) -> Struct:
    """All that a template sees; `marblerun` are the certificates by the names above."""
    before = Struct("Previous", {"Secrets": _table(previous)})
    return Struct("Data", {"MarbleRun": Struct("MarbleRun", marblerun), "Secrets": _table(secrets), "Previous": before})


def _table(entries: Mapping[str, SecretValue]) -> Table:
    return Table(entries, secret_value(SecretType.PLAIN.value), "map[string]Secret")


def dummy_certificates() -> dict[str, SecretValue]:
    """What `.MarbleRun` holds as long as nothing of it exists."""
    kind = SecretType.CERT_ECDSA.value
    names = ("RootCA", "CoordinatorRoot", "CoordinatorIntermediate")
    own = secret_value(kind, certificate=DUMMY, public=DUMMY, private=DUMMY)
    return {**{name: secret_value(kind, certificate=DUMMY) for name in names}, "MarbleCert": own}


def templated(marble: Marble) -> Iterator[tuple[str, str, FileValue, Functions]]:
    """Every value that is a template: member (Files or Env), name, value, and the functions that it has."""
    parameters = marble.parameters
    for member, values, own in (("Files", parameters.files, FILE_FUNCTIONS), ("Env", parameters.env, ENV_FUNCTIONS)):
        for name, value in values.items():
            if value.templated:
                yield member, name, value, own


def parse_template(text: bytes, own: Functions) -> Template:
    """Raises TemplateError."""
    names = frozenset(own)
    return _cached(text, names) if len(text) <= _CACHED_SIZE else parse(text, functions=names)


@functools.lru_cache(maxsize=_CACHED_TEMPLATES)
def _cached(text: bytes, names: frozenset[str]) -> Template:
    # Templates stand in the public manifest: what is kept here is no secret.
    return parse(text, functions=names)


# ---- functions


def _bytes(value: Value) -> bytes:
    if value is None:
        raise FunctionError("secret does not exist")
    data = value.raw if isinstance(value, SecretValue) else value
    if not isinstance(data, bytes):
        raise FunctionError("invalid secret type")
    if not data:
        raise FunctionError(_EMPTY)
    return data


def _pem(value: Value) -> str:
    if isinstance(value, SecretValue):
        raise FunctionError("invalid secret type for pem encoding")
    data = _bytes(value)
    if not isinstance(data, Part):
        raise FunctionError("invalid secret type for pem encoding")
    text = base64.b64encode(data).decode("ascii")
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {data.block}-----\n{lines}\n-----END {data.block}-----\n"


def _hex(value: Value) -> str:
    return _bytes(value).hex()


def _base64(value: Value) -> str:
    return base64.b64encode(_bytes(value)).decode("ascii")


def _raw(value: Value) -> str:
    return _bytes(value).decode("utf-8", "surrogateescape")


def _string(value: Value) -> str:
    if value is None:
        raise FunctionError("secret does not exist")
    if not isinstance(value, SecretValue) or value.fields["Type"] != SecretType.PLAIN.value:
        raise FunctionError("only secrets of type plain are allowed to use string encoding for environment variables")
    data = _bytes(value)
    if b"\0" in data:
        raise FunctionError("secret contains null bytes")
    return data.decode("utf-8", "surrogateescape")


FILE_FUNCTIONS: Functions = {"pem": _pem, "hex": _hex, "base64": _base64, "raw": _raw}
ENV_FUNCTIONS: Functions = {
    "pem": _pem,
    "hex": _hex,
    "base64": _base64,
    "string": _string,
}
