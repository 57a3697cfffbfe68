# SPDX-License-Identifier: Apache-2.0
"""Files and environment of a Marble: the manifest's templates, filled in with its secrets.

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

Errors name function and place, never a value: they travel to whoever starts the Marble.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manifests.errors import Problem
from manifests.model import FileValue, Manifest, Marble
from manifests.template import Budget, FunctionError, Struct, Table, Template, TemplateError, Uint, Value, parse
from sds.ca import CertificateAuthority
from sds.material import Identity
from sds.secrets import Secret, SecretKind
from xds_server.errors import CoordinatorError

# In place of values that do not exist yet when a manifest is tried: MarbleRun's choice, the letter A.
DUMMY = b"A"
# Parsed templates are kept by text: 256 of at most 8 KiB, each about 20 times as large when parsed: 40 MiB at worst.
_CACHED_TEMPLATES = 256
_CACHED_SIZE = 8 * 1024

# Of all templates of a manifest together: parsing 2 MiB of the smallest actions takes 8 seconds, and nobody has more.
MAX_TEMPLATES = 2 * 1024 * 1024
# Work for one Marble's templates and for those of a whole manifest, in the template engine's unit: at worst half a
# second at each activation, and 2 seconds once.
_MARBLE_WORK = 256 * 1024 * 1024
_MANIFEST_WORK = 1024 * 1024 * 1024

_EMPTY = "tried to parse secret with empty value"


class ParametersError(CoordinatorError):
    """A template that cannot be filled in. The text names file or variable, place and function."""


@dataclass(frozen=True, slots=True)
class TemplateData:
    """What templates see. `marble_certificate` None, `ca` None: not known yet, dummies stand for them."""

    secrets: Mapping[str, Secret] = field(repr=False)
    previous_secrets: Mapping[str, Secret] = field(repr=False)
    marble_certificate: Identity | None
    ca: CertificateAuthority | None


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
class _SecretValue(Struct):
    """A whole secret, as a template sees it."""

    kind: SecretKind = SecretKind.PLAIN

    @property
    def raw(self) -> Value:
        return self.fields["Public"]


def render(marble: Marble, data: TemplateData) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files and environment with all templates filled in. Raises ParametersError."""
    if next(_templated(marble), None) is None:
        parameters = marble.parameters
        files, env = ({name: value.data for name, value in of.items()} for of in (parameters.files, parameters.env))
        return files, env
    values, budget = _values(data), Budget(_MARBLE_WORK)
    files = {
        name: _one(value, values, budget, _FILE_FUNCTIONS, f'parsing secrets for file "{name}"')
        for name, value in marble.parameters.files.items()
    }
    env = {}
    for name, value in marble.parameters.env.items():
        env[name] = _one(value, values, budget, _ENV_FUNCTIONS, f'parsing secrets for env variable "{name}"')
        if b"\0" in env[name]:
            raise ParametersError(f"env variable: {name}: content contains null bytes")
    return files, env


def dry_run(manifest: Manifest, secrets: Mapping[str, Secret]) -> None:
    """Fill in every template of every Marble with these secrets, and with dummies for what does not exist yet: unset
    user-defined secrets and everything under .MarbleRun. Raises ParametersError for the first that fails."""
    filled = {name: _filled(secret) for name, secret in secrets.items()}
    values, budget = _values(TemplateData(filled, filled, None, None)), Budget(_MANIFEST_WORK)
    for marble_type, marble in manifest.marbles.items():
        for name, value in marble.parameters.files.items():
            _one(value, values, budget, _FILE_FUNCTIONS, f"in Marble {marble_type}: file {name}")
        for name, value in marble.parameters.env.items():
            where = f"in Marble {marble_type}: env variable: {name}"
            if b"\0" in _one(value, values, budget, _ENV_FUNCTIONS, where):
                raise ParametersError(f"{where}: content contains null bytes")


def check_templates(manifest: Manifest) -> Iterator[Problem]:
    """What Go's templates can do and ours cannot, wherever a manifest uses it. Other faults are `dry_run`'s."""
    total = sum(len(value.data) for marble in manifest.marbles.values() for value in _templated(marble))
    if total > MAX_TEMPLATES:
        yield Problem("Marbles", f"templates of {total} bytes, at most {MAX_TEMPLATES} are accepted: use NoTemplates")
        return
    for marble_type, marble in manifest.marbles.items():
        for member, values, functions in (
            ("Files", marble.parameters.files, _FILE_FUNCTIONS),
            ("Env", marble.parameters.env, _ENV_FUNCTIONS),
        ):
            for name, value in values.items():
                if not value.templated:
                    continue
                try:
                    _parsed(value.data, functions)
                except TemplateError as e:
                    if e.unsupported:
                        yield Problem(f"Marbles.{marble_type}.Parameters.{member}.{name}", str(e))


def secrets_used(manifest: Manifest, marble: Marble) -> tuple[frozenset[str], frozenset[str]]:
    """The secrets that an instance needs, of the current and of the previous generation: those that its templates can
    name, and those that its ports present. All of them where a template does not say which."""
    every = frozenset(manifest.secrets)
    current: set[str] = {entry.cert for tag in marble.tls for entry in manifest.tls[tag].incoming if entry.cert}
    previous: set[str] = set()
    parameters = marble.parameters
    for functions, values in ((_FILE_FUNCTIONS, parameters.files), (_ENV_FUNCTIONS, parameters.env)):
        for value in values.values():
            if not value.templated:
                continue
            try:
                template = _parsed(value.data, functions)
            except TemplateError:
                return every, every  # rendering will say what is wrong
            names, old_names = template.names("Secrets"), template.names("Previous", "Secrets")
            current |= every if names is None else names
            previous |= every if old_names is None else old_names
    return every & current, every & previous


def _templated(marble: Marble) -> Iterator[FileValue]:
    for values in (marble.parameters.files, marble.parameters.env):
        yield from (value for value in values.values() if value.templated)


# ---- rendering


def _one(
    value: FileValue, data: Struct, budget: Budget, functions: Mapping[str, Callable[[Value], Value]], where: str
) -> bytes:
    if not value.templated:
        return value.data
    try:
        return _parsed(value.data, functions).render(data, functions, budget)
    except TemplateError as e:
        raise ParametersError(f"{where}: {e}") from e


def _parsed(text: bytes, functions: Mapping[str, Callable[[Value], Value]]) -> Template:
    names = frozenset(functions)
    return _cached(text, names) if len(text) <= _CACHED_SIZE else parse(text, functions=names)


@functools.lru_cache(maxsize=_CACHED_TEMPLATES)
def _cached(text: bytes, functions: frozenset[str]) -> Template:
    # Templates stand in the public manifest: what is kept here is no secret.
    return parse(text, functions=functions)


# ---- data


def _values(data: TemplateData) -> Struct:
    previous = Struct("Previous", {"Secrets": _table(data.previous_secrets)})
    return Struct("Data", {"MarbleRun": _marblerun(data), "Secrets": _table(data.secrets), "Previous": previous})


def _table(secrets: Mapping[str, Secret]) -> Table:
    entries = {name: _secret(secret) for name, secret in secrets.items()}
    return Table(entries, _secret(Secret(SecretKind.PLAIN)), "map[string]Secret")


def _secret(secret: Secret) -> _SecretValue:
    fields: dict[str, Value] = {
        "Type": secret.kind.value,
        "Size": Uint(secret.size),
        "Shared": secret.shared,
        "UserDefined": secret.user_defined,
        "Cert": Part(secret.certificate or b"", "CERTIFICATE"),
        "ValidFor": Uint(secret.valid_for),
        "Private": Part(secret.private, "PRIVATE KEY"),
        "Public": Part(secret.public, "PUBLIC KEY"),
    }
    return _SecretValue("Secret", fields, secret.kind)


def _marblerun(data: TemplateData) -> Struct:
    def holder(certificate: bytes, public: bytes = b"", private: bytes = b"") -> _SecretValue:
        kind = SecretKind.CERT_ECDSA
        return _secret(Secret(kind, certificate=certificate, public=public, private=private))

    if data.ca is None or data.marble_certificate is None:
        root = marble_root = intermediate = holder(DUMMY)
        own = holder(DUMMY, DUMMY, DUMMY)
    else:
        root, marble_root, intermediate = (
            holder(certificate.public_bytes(Encoding.DER))
            for certificate in (data.ca.root, data.ca.marble_root, data.ca.intermediate)
        )
        leaf = data.marble_certificate.leaf
        own = holder(
            leaf.public_bytes(Encoding.DER),
            leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            # Our own PKCS#8 PEM: loading the key to write it again would take longer than all the rest.
            base64.b64decode(b"".join(data.marble_certificate.key.pem.strip().split(b"\n")[1:-1])),
        )
    fields = {
        "RootCA": marble_root,
        "MarbleCert": own,
        "CoordinatorRoot": root,
        "CoordinatorIntermediate": intermediate,
    }
    return Struct("MarbleRun", fields)


def _filled(secret: Secret) -> Secret:
    if not secret.user_defined or secret.public:
        return secret
    certificate = DUMMY if secret.kind.is_certificate else None
    return replace(secret, certificate=certificate, private=DUMMY, public=DUMMY)


# ---- functions


def _bytes(value: Value) -> bytes:
    if value is None:
        raise FunctionError("secret does not exist")
    data = value.raw if isinstance(value, _SecretValue) else value
    if not isinstance(data, bytes):
        raise FunctionError("invalid secret type")
    if not data:
        raise FunctionError(_EMPTY)
    return data


def _pem(value: Value) -> str:
    if isinstance(value, _SecretValue):
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
    if not isinstance(value, _SecretValue) or value.kind is not SecretKind.PLAIN:
        raise FunctionError("only secrets of type plain are allowed to use string encoding for environment variables")
    data = _bytes(value)
    if b"\0" in data:
        raise FunctionError("secret contains null bytes")
    return data.decode("utf-8", "surrogateescape")


_FILE_FUNCTIONS: Mapping[str, Callable[[Value], Value]] = {"pem": _pem, "hex": _hex, "base64": _base64, "raw": _raw}
_ENV_FUNCTIONS: Mapping[str, Callable[[Value], Value]] = {
    "pem": _pem,
    "hex": _hex,
    "base64": _base64,
    "string": _string,
}
