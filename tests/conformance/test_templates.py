# SPDX-License-Identifier: Apache-2.0
"""Templates of files and environment: set with a manifest by curl, filled in with secrets that a user uploaded, and
looked at in what a Marble receives. Each construct stands in a file and in a variable of one and the same Marble."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status

from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import Bench
from tests.kit.deployment import b64
from tests.kit.marble_deployment import CHAIN, PRIVATE_KEY, MarbleDeployment, Refusal, deployed, owned, web
from tests.kit.openssl_judge import certificates, openssl, public_key
from tests.kit.users import user

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = user("alice")
PKCS8 = openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", data=ALICE.key)
PKIX = public_key(ALICE.certificate)
PLAIN = b"h\xff i"
SECRETS: dict[str, dict[str, object]] = {
    "key": {"Type": "symmetric-key", "Size": 16, "UserDefined": True},
    "plain": {"Type": "plain", "UserDefined": True},
    "cert": {"Type": "cert-ecdsa", "UserDefined": True},
    "with-dash": {"Type": "plain", "UserDefined": True},
    "made": {"Type": "symmetric-key", "Size": 128, "Shared": True},
}
UPLOAD = {
    "key": {"Key": b64(b"AB")},
    "plain": {"Key": b64(PLAIN)},
    "cert": {"Cert": b64(ALICE.der), "Private": b64(PKCS8)},
    "with-dash": {"Key": b64(b"dash")},
}


def pem(block: str, data: bytes) -> bytes:
    """64 columns and a newline at the end."""
    text = base64.b64encode(data)
    lines = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (block.encode(), lines, block.encode())


# --- what is written, and what comes of it


FUNCTIONS: dict[str, bytes] = {
    "{{ pem .Secrets.cert.Cert }}": pem("CERTIFICATE", ALICE.der),
    "{{ pem .Secrets.cert.Public }}": pem("PUBLIC KEY", PKIX),
    "{{ pem .Secrets.cert.Private }}": pem("PRIVATE KEY", PKCS8),
    "{{ pem .Secrets.key.Public }}": pem("PUBLIC KEY", b"AB"),
    "{{ pem .Secrets.key.Private }}": pem("PRIVATE KEY", b"AB"),
    "{{ pem .Secrets.plain.Private }}": pem("PRIVATE KEY", PLAIN),
    "{{ hex .Secrets.key }}": b"4142",
    "{{ hex .Secrets.key.Public }}": b"4142",
    "{{ hex .Secrets.key.Private }}": b"4142",
    "{{ hex .Secrets.plain }}": PLAIN.hex().encode(),
    "{{ hex .Secrets.cert }}": PKIX.hex().encode(),  # a whole secret is its public part
    "{{ hex .Secrets.cert.Cert }}": ALICE.der.hex().encode(),
    "{{ hex .Secrets.cert.Private }}": PKCS8.hex().encode(),
    "{{ base64 .Secrets.key }}": b"QUI=",
    "{{ base64 .Secrets.plain }}": base64.b64encode(PLAIN),
    "{{ base64 .Secrets.cert }}": base64.b64encode(PKIX),
    "{{ base64 .Secrets.cert.Cert }}": base64.b64encode(ALICE.der),
    "{{ base64 .Secrets.cert.Private }}": base64.b64encode(PKCS8),
}
FILE_FUNCTIONS: dict[str, bytes] = {
    "{{ raw .Secrets.key }}": b"AB",
    "{{ raw .Secrets.plain }}": PLAIN,
    "{{ raw .Secrets.cert }}": PKIX,
    "{{ raw .Secrets.cert.Cert }}": ALICE.der,
    "{{ raw .Secrets.cert.Private }}": PKCS8,
}
ENV_FUNCTIONS: dict[str, bytes] = {
    "{{ string .Secrets.plain }}": PLAIN,
    '{{ string (index .Secrets "with-dash") }}': b"dash",
}
BUILTINS: dict[str, str] = {
    "{{ and 1 0 2 }}{{ and 1 2 }}": "02",
    '{{ or 0 "" "x" }}{{ or 0 "" }}': "x",
    "{{ not 0 }} {{ not 1 }}": "true false",
    '{{ len "héllo" }} {{ len .Secrets.made.Public }}': "6 16",
    '{{ index .Secrets "key" | hex }}': "4142",
    "{{ index .Secrets.key.Public 0 }}": "65",
    '{{ slice "abcdef" 1 3 }}{{ slice "abcdef" 4 }}{{ slice "ab" }}': "bcefab",
    '{{ print 1 2 "a" "b" 3 4.5 true nil }}': "1 2ab3 4.5 true <nil>",
    '{{ println 1 "a" }}': "1 a\n",
    '{{ printf "%d %s %v %q %x %X %t %c %%" 1 "a" 2.5 "q" 255 "hi" true 65 }}': '1 a 2.5 "q" ff 6869 true A %',
    '{{ printf "%5d|%-5d|%05d|%+d|%.2s|%5.1f" 42 42 42 42 "abc" 3.14159 }}': "   42|42   |00042|+42|ab|  3.1",
    '{{ printf "%d" "a" }}{{ printf "%d" }}{{ printf "a" 1 }}': "%!d(string=a)%!d(MISSING)a%!(EXTRA int=1)",
    '{{ html `<a href="x">&\'` }}': "&lt;a href=&#34;x&#34;&gt;&amp;&#39;",
    "{{ js `<a>'\"&=` }}": "\\u003Ca\\u003E\\'\\\"\\u0026\\u003D",
    '{{ urlquery "a b&c/ü" }}': "a+b%26c%2F%C3%BC",
    '{{ eq 1 1 }} {{ eq "a" "b" }} {{ eq 1 2 3 1 }}': "true false true",
    "{{ ne 1 2 }} {{ ne 1 1 }}": "true false",
    '{{ lt 1 2 }} {{ lt "b" "a" }}': "true false",
    "{{ le 2 2 }} {{ le 3 2 }}": "true false",
    '{{ gt 2.5 1.5 }} {{ gt "a" "b" }}': "true false",
    "{{ ge 2 2 }} {{ ge 1 2 }}": "true false",
}
ACTIONS: dict[str, str] = {
    "{{ if .Secrets.key }}yes{{ else }}no{{ end }}": "yes",
    "{{ if 0 }}a{{ else if 1 }}b{{ else }}c{{ end }}": "b",
    '{{ if and (eq .Secrets.key.Type "symmetric-key") (not .Secrets.key.Shared) }}yes{{ end }}': "yes",
    "{{ range .Secrets.made.Public }}x{{ end }}": "x" * 16,
    "{{ range $i, $e := slice .Secrets.key.Public 0 1 }}{{ $i }}={{ $e }}{{ end }}": "0=65",
    "{{ range $name, $secret := .Secrets }}{{ $name }}:{{ $secret.Type }} {{ end }}": (
        "cert:cert-ecdsa key:symmetric-key made:symmetric-key plain:plain unset:plain with-dash:plain "
    ),
    "{{ range 3 }}{{ . }}{{ end }}": "012",
    "{{ range slice .Secrets.key.Public 0 0 }}some{{ else }}none{{ end }}": "none",
    "{{ range 9 }}{{ if eq . 1 }}{{ continue }}{{ end }}{{ if eq . 4 }}{{ break }}{{ end }}{{ . }}{{ end }}": "023",
    "{{ with .Secrets.key }}{{ .Type }}{{ end }}": "symmetric-key",
    "{{ with 0 }}a{{ else with 1 }}{{ . }}{{ else }}b{{ end }}": "1",
    '{{ with "" }}a{{ else }}b{{ end }}': "b",
    "{{ with .Secrets.key }}{{ $.Secrets.plain.Type }}{{ end }}": "plain",
    "{{ $x := 1 }}{{ $x }}{{ $x = 2 }}{{ $x }}{{ if true }}{{ $x = 3 }}{{ $x := 4 }}{{ end }}{{ $x }}": "123",
    "{{ with $key := .Secrets.key }}{{ hex $key }}{{ end }}": "4142",
    "{{ .Secrets.key | hex }}": "4142",
    '{{ .Secrets.key | hex | printf "%s-%s" "key" | len }}': "8",
    '{{ (index .Secrets "key").Type }}': "symmetric-key",
    '{{ printf "%s!" (hex (index $.Secrets "key")) }}': "4142!",
    "a{{/* a comment }} */}}b": "ab",
    "a {{- /* a comment */ -}} b": "ab",
    'a \n\t{{- "b" -}}\n c': "abc",
    "{{- 1 }} {{ 2 -}} ": "1 2",
    "{{ 3 }}{{ -1 }}{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1_000 }}{{ 1.5e3 }}{{ 'x' }}": "3-13131510001500120",
    '{{ "a\\tb\\u00e9\\x41" }}{{ `raw\\n` }}': "a\tbéAraw\\n",
    "{{ true }}{{ false }}": "truefalse",
    "{{ print nil }}": "<nil>",
    "one line {{ 1 }}\nanother {{ 2 }}\n": "one line 1\nanother 2\n",
    "no template at all: { } }} %d": "no template at all: { } }} %d",
    "": "",
}
FIELDS: dict[str, str] = {
    "{{ .Secrets.key.Type }}": "symmetric-key",
    "{{ .Secrets.key.Size }}": "16",
    "{{ .Secrets.key.Shared }}": "false",
    "{{ .Secrets.key.UserDefined }}": "true",
    "{{ .Secrets.key.ValidFor }}": "0",
    "{{ .Secrets.key.Public }}": "[65 66]",
    "{{ .Secrets.missing.Type }}": "<no value>",
    "{{ .Secrets.missing.Size }}": "<no value>",
    "{{ .Previous.Secrets.key.Type }}": "symmetric-key",
}
EVERYWHERE = FUNCTIONS | {text: value.encode() for text, value in (BUILTINS | ACTIONS | FIELDS).items()}
IN_FILES, IN_ENV = EVERYWHERE | FILE_FUNCTIONS, EVERYWHERE | ENV_FUNCTIONS
PREDEFINED = {
    "RootCA.Cert": "{{ pem .MarbleRun.RootCA.Cert }}",
    "MarbleCert.Cert": "{{ pem .MarbleRun.MarbleCert.Cert }}",
    "MarbleCert.Public": "{{ pem .MarbleRun.MarbleCert.Public }}",
    "MarbleCert.Private": "{{ pem .MarbleRun.MarbleCert.Private }}",
    "CoordinatorRoot.Cert": "{{ pem .MarbleRun.CoordinatorRoot.Cert }}",
    "CoordinatorIntermediate.Cert": "{{ pem .MarbleRun.CoordinatorIntermediate.Cert }}",
}
ODD = {
    "not a template": {"Data": "{{ not a template }}", "NoTemplates": True},
    "around bytes": {"Data": b64(b"\xff{{ hex .Secrets.key }}\x80"), "Encoding": "base64"},
    "as hex": {"Data": b"{{ 1 }}".hex(), "Encoding": "hex"},
}


def numbered(texts: Mapping[str, object]) -> dict[str, str]:
    return {f"n{number}": text for number, text in enumerate(texts)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    env = numbered(IN_ENV) | PREDEFINED | ODD
    files = numbered(IN_FILES) | PREDEFINED | ODD | {"NUL": '{{ "\\x00" }}'}
    unset = {"Type": "plain", "UserDefined": True}
    failing = {"Files": {"f": "{{ raw .Secrets.unset }}"}}, {"Env": {"E": "{{ hex .Previous.Secrets.unset }}"}}
    marbles = web(Env=env, Files=files, Argv=["./web", "{{ hex .Secrets.key }}", "{{ define }}"]) | {
        f"failing {number}": {"Package": "app", "Parameters": parameters} for number, parameters in enumerate(failing)
    }
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(owned(Secrets=SECRETS | {"unset": unset}, Marbles=marbles))
        assert (await made.post("/secrets", UPLOAD, ALICE)).status == 200
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def got(town: MarbleDeployment) -> Parameters:
    """What the Marble received."""
    return await town.activate()


@pytest.mark.parametrize("text", EVERYWHERE)
async def test_in_a_file_and_in_a_variable(got: Parameters, text: str) -> None:
    assert got.files[f"n{[*IN_FILES].index(text)}"] == EVERYWHERE[text]
    assert got.env[f"n{[*IN_ENV].index(text)}"] == EVERYWHERE[text]


@pytest.mark.parametrize("text", FILE_FUNCTIONS)
async def test_in_a_file_only(got: Parameters, text: str) -> None:
    assert got.files[f"n{[*IN_FILES].index(text)}"] == FILE_FUNCTIONS[text]


@pytest.mark.parametrize("text", ENV_FUNCTIONS)
async def test_in_a_variable_only(got: Parameters, text: str) -> None:
    assert got.env[f"n{[*IN_ENV].index(text)}"] == ENV_FUNCTIONS[text]


# --- predefined data


@pytest.mark.parametrize("name", ["RootCA", "CoordinatorRoot", "CoordinatorIntermediate"])
async def test_a_predefined_certificate(town: MarbleDeployment, got: Parameters, name: str) -> None:
    expected = {
        "RootCA": town.marble_root,
        "CoordinatorRoot": town.root,
        "CoordinatorIntermediate": town.intermediate,
    }
    assert got.files[f"{name}.Cert"] == got.env[f"{name}.Cert"] == expected[name]


async def test_the_marbles_own_certificate_and_its_keys(got: Parameters) -> None:
    leaf = certificates(got.env[CHAIN])[0]
    for where in (got.files, got.env):
        assert where["MarbleCert.Cert"] == leaf
        assert where["MarbleCert.Private"] == got.env[PRIVATE_KEY]
        assert openssl("pkey", "-pubin", "-outform", "DER", data=where["MarbleCert.Public"]) == public_key(leaf)


# --- where templates are looked for


async def test_arguments_are_never_templates(got: Parameters) -> None:
    assert list(got.argv) == ["./web", "{{ hex .Secrets.key }}", "{{ define }}"]


async def test_no_templates_means_none(got: Parameters) -> None:
    assert got.files["not a template"] == got.env["not a template"] == b"{{ not a template }}"


async def test_encoded_data_may_be_a_template_among_bytes(got: Parameters) -> None:
    assert got.files["around bytes"] == got.env["around bytes"] == b"\xff4142\x80"
    assert got.files["as hex"] == got.env["as hex"] == b"1"


async def test_a_file_may_hold_nul(got: Parameters) -> None:
    assert got.files["NUL"] == b"\0"


# --- values that are missing when a Marble starts


async def test_an_unset_secret_fails_the_activation_with_its_place(town: MarbleDeployment) -> None:
    assert await town.refusal("failing 0") == Refusal(
        Status.INTERNAL,
        'customizing marble parameters: parsing secrets for file "f": template: data:1:3: executing "data" at '
        "<raw .Secrets.unset>: error calling raw: tried to parse secret with empty value",
    )


async def test_the_previous_generation_has_a_place_too(town: MarbleDeployment) -> None:
    assert await town.refusal("failing 1") == Refusal(
        Status.INTERNAL,
        'customizing marble parameters: parsing secrets for env variable "E": template: data:1:3: executing "data" at '
        "<hex .Previous.Secrets.unset>: error calling hex: tried to parse secret with empty value",
    )
