# SPDX-License-Identifier: Apache-2.0
"""A manifest's templates are tried without a Coordinator, and judged as the Coordinator will judge them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from manifests.model import Manifest
from manifests.parse import parse
from manifests.template_check import template_problems
from manifests.template_values import MAX_TEMPLATES
from tests.kit.pki import shared_ca
from xds_server.parameters import ParametersError, dry_run
from xds_server.secret_rules import generate_shared

SECRETS = {
    "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    "own": {"Type": "symmetric-key", "Size": 128},
    "tls": {"Type": "cert-ecdsa", "Size": 256, "Shared": True},
    "pw": {"Type": "plain", "UserDefined": True},
}
PACKAGE = {"SignerID": "ab" * 32, "ProductID": 1, "SecurityVersion": 1}


def of(files: dict[str, object], env: dict[str, object]) -> Manifest:
    marble = {"Package": "app", "Parameters": {"Files": files, "Env": env}}
    document = {"Packages": {"app": PACKAGE}, "Marbles": {"web": marble}, "Secrets": SECRETS}
    return parse(json.dumps(document).encode())


def coordinator_takes(manifest: Manifest) -> bool:
    try:
        dry_run(manifest, generate_shared(manifest, shared_ca(), datetime.now(UTC)))
    except ParametersError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "{{ hex .Secrets.key }}{{ base64 .Secrets.own.Private }}",
        "{{ pem .Secrets.tls.Cert }}{{ pem .Secrets.tls.Private }}{{ pem .Previous.Secrets.tls.Cert }}",
        "{{ pem .MarbleRun.RootCA.Cert }}{{ pem .MarbleRun.MarbleCert.Private }}",
        "{{ if .Secrets.pw.UserDefined }}{{ string .Secrets.pw }}{{ end }}",
        "{{ range $name, $secret := .Secrets }}{{ $name }}={{ $secret.Type }} {{ end }}",
    ],
)
def test_a_template_that_can_be_filled_in_is_no_problem(text: str) -> None:
    manifest = of({}, {"A": text})
    assert list(template_problems(manifest)) == []
    assert coordinator_takes(manifest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ hex .Secrets.key | bogus }}", 'function "bogus" not defined'),
        ("{{ hex .Secrets.key ", "unclosed action"),
        ('{{ define "x" }}{{ end }}', "define"),
        ("{{ hex .Secrets.nobody }}", "secret does not exist"),
        ("{{ .Nope }}", "can't evaluate field Nope"),
        ("{{ pem .Secrets.key.Cert }}", "tried to parse secret with empty value"),
        ("{{ string .Secrets.key }}", "only secrets of type plain"),
        ("{{ raw .Secrets.key }}", 'function "raw" not defined'),
        ('{{ print "\\x00" }}', "content contains null bytes"),
    ],
)
def test_one_that_cannot_be_is_named_with_its_place(text: str, expected: str) -> None:
    manifest = of({}, {"A": text, "B": "fine"})
    (problem,) = template_problems(manifest)
    assert problem.path == "Marbles.web.Parameters.Env.A"
    assert expected in problem.message
    assert not coordinator_takes(manifest)


def test_all_of_them_are_named_at_once() -> None:
    manifest = of({"f": "{{ x }}", "g": "{{ raw .Secrets.key }}"}, {"A": "{{ y }}"})
    assert [problem.path.removeprefix("Marbles.web.Parameters.") for problem in template_problems(manifest)] == [
        "Files.f",
        "Env.A",
    ]


def test_what_is_marked_as_no_template_is_none() -> None:
    assert not list(template_problems(of({"f": {"Data": "{{ x", "NoTemplates": True}}, {})))


def test_more_than_the_coordinator_looks_at_is_one_problem() -> None:
    (problem,) = template_problems(of({"f": "{{" + " " * MAX_TEMPLATES + "1 }}"}, {}))
    assert "use NoTemplates" in problem.message
