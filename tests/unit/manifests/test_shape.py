# SPDX-License-Identifier: Apache-2.0
"""How the file is read: Go's decoding rules, types with the place of each wrong member, decoded values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ManifestError
from manifests.model import FileValue
from manifests.parse import parse
from manifests.schema import SCHEMA_FILE, schema_text
from tests.kit.manifests import SGX_PACKAGE, manifest, raw

EXAMPLES = sorted((Path(__file__).parents[3] / "manifests" / "examples").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted_without_warnings(path: Path) -> None:
    assert parse(path.read_bytes()).warnings == ()


def test_the_fingerprint_is_of_the_exact_bytes() -> None:
    text = raw(manifest()) + b" \n"
    assert parse(text).fingerprint == hashlib.sha256(text).hexdigest()
    assert parse(text).raw == text


def test_member_names_match_in_any_case_and_map_keys_do_not() -> None:
    shouted = {"PACKAGES": {"p": {"signerid": "ab" * 32, "productID": 1, "\u017fecurityversion": 2}}}
    result = parse(raw(shouted | {"marbles": {"web": {"package": "p"}, "WEB": {"package": "p"}}}))
    assert result.packages["p"].security_version == 2
    assert list(result.marbles) == ["web", "WEB"]


def test_a_member_twice_in_different_case_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"member Package occurs twice \(at Marbles.web\)"):
        parse(raw(manifest(Marbles={"web": {"Package": "p", "package": "p"}})))


def test_unknown_members_are_kept_and_warned_of() -> None:
    result = parse(raw(manifest(Clients={"x": 1}, Marbles={"web": {"Package": "p", "unique_id": 1, "__class__": 2}})))
    assert [str(warning) for warning in result.warnings] == [
        "unknown member, ignored (at Clients)",
        "unknown member, ignored (at Marbles.web.unique_id)",
        "unknown member, ignored (at Marbles.web.__class__)",
    ]


def test_null_is_absent_everywhere() -> None:
    nulls: dict[str, Any] = dict.fromkeys(("TLS", "Secrets", "Users", "Roles", "RecoveryKeys", "Config", "Mesh"))
    package = {**SGX_PACKAGE, "UniqueID": None, "Debug": None, "AcceptedTCBStatuses": None, "TDX": None}
    marble = {
        "Package": "p",
        "MaxActivations": None,
        "TLS": None,
        "Parameters": {"Files": None, "Env": None, "Argv": None},
    }
    assert parse(raw({"Packages": {"p": package}, "Marbles": {"web": marble}, **nulls})).marbles["web"].tls == ()
    assert parse(raw(manifest(Marbles={"web": {"Package": "p", "Parameters": {"Argv": [None, "x"]}}}))).marbles[
        "web"
    ].parameters.argv == ("", "x")


@pytest.mark.parametrize("number", ["1.0", "1e0", "-1", "-0", '"1"', "true", "18446744073709551616", "[1]"])
def test_unsigned_integers_are_written_plainly(number: str) -> None:
    text = json.dumps(manifest()).replace('"ProductID": 1', f'"ProductID": {number}').encode()
    with pytest.raises(ManifestError, match=r"(want a whole number|out of range).*\(at Packages.p.ProductID\)"):
        parse(text)


def test_every_wrong_type_is_reported_with_its_place() -> None:
    wrong = manifest(
        Marbles={"web": {"Package": 1, "TLS": "x", "Parameters": [], "DisableSecretBinding": 0}, "odd name.": 3},
        TLS={"t": {"Incoming": {}}},
    )
    with pytest.raises(ManifestError) as caught:
        parse(raw(wrong))
    assert [str(problem) for problem in caught.value.problems] == [
        "want a string, got a number (at Marbles.web.Package)",
        "want an object, got an array (at Marbles.web.Parameters)",
        "want an array, got a string (at Marbles.web.TLS)",
        "want true or false, got a number (at Marbles.web.DisableSecretBinding)",
        'want an object, got a number (at Marbles["odd name."])',
        "want an array, got an object (at TLS.t.Incoming)",
    ]
    assert str(caught.value) == "; ".join(str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"x"'])
def test_a_manifest_is_an_object(text: bytes) -> None:
    with pytest.raises(ManifestError, match="want a JSON object, got"):
        parse(text)


def files(**values: Any) -> dict[str, Any]:
    return manifest(Marbles={"web": {"Package": "p", "Parameters": {"Files": values}}})


@pytest.mark.parametrize(
    ("value", "data", "templated"),
    [
        ("plain", b"plain", False),
        ("{{ pem .MarbleRun.RootCA.Cert }}", b"{{ pem .MarbleRun.RootCA.Cert }}", True),
        ({"Data": "{{ x }}", "NoTemplates": True}, b"{{ x }}", False),
        ({"Data": "6869", "Encoding": "HEX"}, b"hi", False),
        ({"Data": "e3sg\neH19", "Encoding": "base64"}, b"{{ x}}", True),
        ({"data": "x", "encoding": "string"}, b"x", False),
        ({}, b"", False),
    ],
)
def test_file_values(value: Any, data: bytes, templated: bool) -> None:
    assert parse(raw(files(f=value))).marbles["web"].parameters.files["f"] == FileValue(data, templated)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got: %!t(<nil>), expected: string or interface (at Marbles.web.Parameters.Files.f)"),
        (5, "got: a number, expected: string or interface (at Marbles.web.Parameters.Files.f)"),
        ({"Encoding": "utf7"}, "unknown encoding type: utf7 (at Marbles.web.Parameters.Files.f.Encoding)"),
        ({"Data": "a b", "Encoding": "hex"}, "illegal hex data"),
        ({"Data": "YQ", "Encoding": "base64"}, "illegal base64 data"),
        ({"Data": "YQ-_", "Encoding": "base64"}, "illegal base64 data"),
    ],
)
def test_no_file_values(value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(raw(files(f=value)))
    assert str(caught.value).startswith(message)


def test_infrastructure_bytes_are_base64_or_numbers() -> None:
    result = parse(raw(manifest(Infrastructures={"i": {"CPUSVN": [1, 2], "RootCA": "AQI=", "QESVN": 2}})))
    assert result.infrastructures["i"].cpusvn == result.infrastructures["i"].root_ca == b"\1\2"
    with pytest.raises(ManifestError, match=r"got an array \(at Infrastructures.i.CPUSVN\)"):
        parse(raw(manifest(Infrastructures={"i": {"CPUSVN": [256]}})))


def test_the_schema_file_is_current() -> None:
    assert SCHEMA_FILE.read_text() == schema_text()
