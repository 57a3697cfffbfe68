# SPDX-License-Identifier: Apache-2.0
"""Templates of files and environment: the engine against recorded answers of Go's, and MarbleRun's data and functions.

What is stated of them is proven over the wire in tests/conformance; here are the engine and the rules by themselves.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from manifests.model import Manifest
from manifests.parse import parse as parse_manifest
from manifests.template import TemplateError, parse
from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.secrets import Secret, SecretKind
from tests.kit.coordinator import PACKAGE
from tests.kit.template_data import DATA, FUNCTIONS
from xds_server.parameters import ParametersError, TemplateData, check_templates, dry_run, render, secrets_used
from xds_server.secret_rules import generate_shared

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "templates.json").read_text())["cases"]

NOW = datetime.now(UTC)
CA = CertificateAuthority.create(["localhost"], [], NOW)
IDENTITY = CA.issue_marble(
    LeafTemplate("web", "11111111-2222-3333-4444-555555555555", CertificateRequest((), (), x509.Name([])), None), NOW
)
KEY = Secret(SecretKind.SYMMETRIC_KEY, 16, shared=True, private=b"AB", public=b"AB")
PLAIN = Secret(SecretKind.PLAIN, user_defined=True, private=b"h\xff i", public=b"h\xff i")
CERT = Secret(SecretKind.CERT_ECDSA, 256, shared=True, certificate=b"C" * 60, private=b"P", public=b"Q")
UNSET = Secret(SecretKind.PLAIN, user_defined=True)
SECRETS = {"key": KEY, "plain": PLAIN, "cert": CERT, "unset": UNSET}


def manifest(secrets: Mapping[str, object] | None = None, **parameters: object) -> Manifest:
    document = {
        "Packages": {"app": PACKAGE},
        "Marbles": {"web": {"Package": "app", "Parameters": parameters}},
        "Secrets": secrets or {},
    }
    return parse_manifest(json.dumps(document).encode())


def in_file(text: str) -> bytes:
    marble = manifest(Files={"f": text}).marbles["web"]
    return render(marble, TemplateData(SECRETS, {"key": PLAIN}, IDENTITY, CA))[0]["f"]


def in_env(text: str) -> bytes:
    marble = manifest(Env={"E": text}).marbles["web"]
    return render(marble, TemplateData(SECRETS, {}, IDENTITY, CA))[1]["E"]


def refused(make: object, text: str) -> str:
    with pytest.raises(ParametersError) as caught:
        make(text)  # type: ignore[operator]
    return str(caught.value)


# --- the engine


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: repr(case["template"])[:60])
def test_a_template_gives_what_go_gives(case: dict[str, str]) -> None:
    def rendered() -> bytes:
        return parse(case["template"], functions=FUNCTIONS).render(DATA, FUNCTIONS)

    if "text" in case or "output" in case:
        expected = case["text"].encode() if "text" in case else base64.b64decode(case["output"])
        assert rendered() == expected
        return
    with pytest.raises(TemplateError) as caught:
        rendered()
    if "error" in case:
        assert str(caught.value) == case["error"]
    else:  # Go names no column when it parses
        assert re.sub(r"^(template: data:\d+):\d+:", r"\1:", str(caught.value)) == case["parse_error"]


@pytest.mark.parametrize("word", ["define", "template", "block", "call"])
def test_what_is_not_supported_is_refused_by_name_with_line_and_column(word: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(f'one\n {{{{ {word} "x" . }}}}')
    assert (caught.value.line, caught.value.column, caught.value.unsupported) == (2, 4, True)
    assert str(caught.value) == f'template: data:2:4: "{word}" is not supported in manifests'


# --- data


@pytest.mark.parametrize(
    ("name", "certificate"),
    [
        ("RootCA", CA.marble_root),
        ("MarbleCert", IDENTITY.leaf),
        ("CoordinatorRoot", CA.root),
        ("CoordinatorIntermediate", CA.intermediate),
    ],
)
def test_the_predefined_certificates(name: str, certificate: x509.Certificate) -> None:
    assert in_file(f"{{{{ pem .MarbleRun.{name}.Cert }}}}") == certificate.public_bytes(Encoding.PEM)


def test_the_marble_certificate_has_its_keys() -> None:
    key = load_pem_private_key(in_file("{{ pem .MarbleRun.MarbleCert.Private }}"), None)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert in_file("{{ pem .MarbleRun.MarbleCert.Public }}") == public


def test_the_other_predefined_certificates_have_no_keys() -> None:
    text = refused(in_file, "{{ pem .MarbleRun.RootCA.Private }}")
    assert text.endswith("error calling pem: tried to parse secret with empty value")


def test_there_is_no_seal_key_any_more() -> None:
    assert "can't evaluate field SealKey in type MarbleRun" in refused(in_file, "{{ hex .MarbleRun.SealKey }}")


def test_the_previous_generation_is_apart() -> None:
    assert in_file("{{ raw .Secrets.key }}{{ raw .Previous.Secrets.key }}") == b"AB" + PLAIN.public


def test_parts_and_plain_fields_of_a_secret() -> None:
    assert in_file("{{ .Secrets.key.Type }} {{ .Secrets.key.Size }} {{ .Secrets.key.Public }}") == (
        b"symmetric-key 16 [65 66]"
    )


def test_a_missing_secret_has_no_value_as_a_field() -> None:
    assert in_file("{{ .Secrets.missing.Type }}") == b"<no value>"


def test_index_and_pipelines_reach_names_that_are_no_identifiers() -> None:
    assert in_file('{{ index .Secrets "key" | hex }}') == b"4142"


# --- functions


@pytest.mark.parametrize("where", [in_file, in_env])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ hex .Secrets.key }}", b"4142"),
        ("{{ base64 .Secrets.key }}", b"QUI="),
        ("{{ hex .Secrets.cert }}", b"51"),  # a whole secret is its public part
        ("{{ hex .Secrets.cert.Private }}", b"50"),
        ("{{ pem .Secrets.key.Private }}", b"-----BEGIN PRIVATE KEY-----\nQUI=\n-----END PRIVATE KEY-----\n"),
        ("{{ pem .Secrets.cert.Public }}", b"-----BEGIN PUBLIC KEY-----\nUQ==\n-----END PUBLIC KEY-----\n"),
        (
            "{{ pem .Secrets.cert.Cert }}",
            b"-----BEGIN CERTIFICATE-----\n" + b"Q0ND" * 16 + b"\n" + b"Q0ND" * 4 + b"\n-----END CERTIFICATE-----\n",
        ),
    ],
)
def test_functions_of_files_and_environment(where: object, template: str, expected: bytes) -> None:
    assert where(template) == expected  # type: ignore[operator]


def test_raw_is_for_files_only() -> None:
    assert in_file("{{ raw .Secrets.plain }}") == b"h\xff i"
    assert 'function "raw" not defined' in refused(in_env, "{{ raw .Secrets.plain }}")


def test_string_is_for_the_environment_only() -> None:
    assert in_env("{{ string .Secrets.plain }}") == b"h\xff i"
    assert 'function "string" not defined' in refused(in_file, "{{ string .Secrets.plain }}")


@pytest.mark.parametrize("what", [".Secrets.key", ".Secrets.plain.Public"])
def test_string_takes_whole_plain_secrets_only(what: str) -> None:
    assert refused(in_env, f"{{{{ string {what} }}}}").endswith(
        "error calling string: only secrets of type plain are allowed to use string encoding for environment variables"
    )


def test_string_refuses_nul() -> None:
    marble = manifest(Env={"E": "{{ string .Secrets.z }}"}).marbles["web"]
    zero = Secret(SecretKind.PLAIN, user_defined=True, private=b"\0", public=b"\0")
    with pytest.raises(ParametersError, match=r"error calling string: secret contains null bytes$"):
        render(marble, TemplateData({"z": zero}, {}, IDENTITY, CA))


def test_pem_takes_parts_only() -> None:
    assert refused(in_file, "{{ pem .Secrets.key }}").endswith(
        "error calling pem: invalid secret type for pem encoding"
    )


def test_an_unknown_secret_is_named_as_go_does() -> None:
    assert refused(in_file, "{{ hex .Secrets.missing }}") == (
        'parsing secrets for file "f": template: data:1:3: executing "data" at <hex .Secrets.missing>: '
        "error calling hex: secret does not exist"
    )


def test_an_unset_secret_is_refused() -> None:
    assert refused(in_file, "{{ raw .Secrets.unset }}").endswith(
        'executing "data" at <raw .Secrets.unset>: error calling raw: tried to parse secret with empty value'
    )


def test_other_values_are_no_secrets() -> None:
    assert refused(in_file, '{{ hex "text" }}').endswith("error calling hex: invalid secret type")


# --- where templates are looked for


def test_no_templates_means_none() -> None:
    marble = manifest(Files={"f": {"Data": "{{ not one }}", "NoTemplates": True}}).marbles["web"]
    assert render(marble, TemplateData({}, {}, None, None))[0] == {"f": b"{{ not one }}"}


def test_arguments_are_never_templates() -> None:
    assert list(check_templates(manifest(Argv=["./web", "{{ define }}"]))) == []


def test_bytes_that_are_no_text_pass_through() -> None:
    data = base64.b64encode(b"\xff\xfe{{ hex .Secrets.key }}\x80").decode()
    marble = manifest(Files={"f": {"Data": data, "Encoding": "base64"}}).marbles["web"]
    assert render(marble, TemplateData(SECRETS, {}, IDENTITY, CA))[0]["f"] == b"\xff\xfe4142\x80"


# --- the dry run


def test_the_dry_run_fills_dummies_for_what_does_not_exist_yet() -> None:
    secrets = {"u": {"Type": "plain", "UserDefined": True}, "c": {"Type": "cert-rsa", "UserDefined": True}}
    what = manifest(
        secrets,
        Env={"E": "{{ string .Secrets.u }}{{ pem .MarbleRun.MarbleCert.Private }}{{ pem .Secrets.c.Cert }}"},
    )
    dry_run(what, generate_shared(what, CA, NOW))


def test_the_dry_run_names_marble_and_file() -> None:
    with pytest.raises(ParametersError, match=r"^in Marble web: file f: template: data:1:3: executing"):
        dry_run(manifest(Files={"f": "{{ hex .Secrets.missing }}"}), {})


def test_environment_must_not_contain_nul() -> None:
    with pytest.raises(ParametersError, match=r"^in Marble web: env variable: E: content contains null bytes$"):
        dry_run(manifest(Env={"E": '{{ "\\x00" }}'}), {})


def test_what_is_not_supported_is_named_when_the_manifest_is_set() -> None:
    problems = list(check_templates(manifest(Env={"E": 'a\n{{ if false }}{{ printf "%p" 1 }}{{ end }}'})))
    assert [str(problem) for problem in problems] == [
        "template: data:2:24: printf: %p is not supported in manifests (at Marbles.web.Parameters.Env.E)"
    ]


def test_a_template_that_go_refuses_too_is_left_to_the_dry_run() -> None:
    assert list(check_templates(manifest(Env={"E": "{{ nope }}"}))) == []


# --- which secrets an instance needs


@pytest.mark.parametrize(
    ("template", "current", "previous"),
    [
        ("{{ hex .Secrets.a }}", {"a"}, set()),
        ('{{ index $.Secrets "a" | hex }}{{ hex .Previous.Secrets.b.Private }}', {"a"}, {"b"}),
        ("{{ with .Secrets.a }}{{ hex .Public }}{{ end }}", {"a"}, set()),
        ("{{ range $k, $v := .Secrets }}{{ $k }}{{ end }}", {"a", "b"}, set()),
        ('{{ index .Secrets (print "a") | hex }}', {"a", "b"}, set()),
        ("{{ with .Previous }}{{ hex .Secrets.a }}{{ end }}", {"a"}, {"a", "b"}),
        ("{{ with $ }}{{ hex .Secrets.a }}{{ end }}", {"a", "b"}, {"a", "b"}),
    ],
)
def test_an_instance_needs_what_its_templates_can_name(template: str, current: set[str], previous: set[str]) -> None:
    secret = {"Type": "symmetric-key", "Size": 128}
    what = manifest({"a": secret, "b": secret}, Files={"f": template})
    assert [set(names) for names in secrets_used(what, what.marbles["web"])] == [current, previous]
