# SPDX-License-Identifier: Apache-2.0
"""`marblemesh linkerd annotations`: from a manifest's ports to what Linkerd has to be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from marblemesh.cli.app import run
from tests.kit.manifests import manifest, raw

Capture = pytest.CaptureFixture[str]
OPAQUE = "config.linkerd.io/opaque-ports"


def call(capsys: Capture, *arguments: str | Path) -> tuple[int, str, str]:
    status = run(["linkerd", "annotations", *map(str, arguments)], {})
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def mesh(path: Path, port: str = "9443") -> Path:
    marbles = {name: {"Package": "app", "TLS": [name]} for name in ("web", "db")}
    tls = {"web": {"Outgoing": [{"Addr": "db", "Port": port}]}, "db": {"Incoming": [{"Port": port}]}}
    document = manifest(Marbles=marbles, TLS=tls)
    document["Packages"]["app"] = next(iter(document["Packages"].values()))
    path.write_bytes(raw(document))
    return path


def test_every_marble_type_gets_its_pods_and_its_services_annotations(capsys: Capture, tmp_path: Path) -> None:
    file = mesh(tmp_path / "m.json")
    expected = {"db": {"pod": {OPAQUE: "9443"}, "service": {OPAQUE: "9443"}}, "web": {"pod": {}, "service": {}}}
    status, out, err = call(capsys, "--manifest", file)
    assert (status, yaml.safe_load(out), err) == (0, expected, "")
    status, out, _ = call(capsys, "--manifest", file, "-o", "json")
    assert (status, json.loads(out)) == (0, expected)


def test_skipping_names_the_coordinators_ports_and_keeps_linkerds_defaults(capsys: Capture, tmp_path: Path) -> None:
    status, out, _ = call(capsys, "--manifest", mesh(tmp_path / "m.json"), "--mode", "skip")
    found = yaml.safe_load(out)
    assert status == 0
    assert found["web"]["pod"] == {"config.linkerd.io/skip-outbound-ports": "2001,4433,4567,4568,9443,18000"}
    assert found["db"]["pod"]["config.linkerd.io/skip-inbound-ports"] == "4567,4568,9443"
    assert found["db"]["service"] == {}


def test_only_the_named_types_are_printed(capsys: Capture, tmp_path: Path) -> None:
    file = mesh(tmp_path / "m.json")
    status, out, _ = call(capsys, "--manifest", file, "--marble", "db")
    assert (status, list(yaml.safe_load(out))) == (0, ["db"])
    status, out, err = call(capsys, "--manifest", file, "--marble", "dbb")
    assert (status, out) == (1, "")
    assert err == "marblemesh: the manifest has no Marble 'dbb'; it has db, web\n"


@pytest.mark.parametrize(("port", "whose"), [("4140", "outbound"), ("4143", "inbound"), ("4191", "admin")])
def test_a_port_that_is_linkerds_own_is_refused(capsys: Capture, tmp_path: Path, port: str, whose: str) -> None:
    status, out, err = call(capsys, "--manifest", mesh(tmp_path / "m.json", port))
    assert (status, out) == (1, "")
    assert f"Marble 'db' has Incoming port {port}, which is Linkerd's {whose} port in every pod: give it another" in err


def test_a_manifest_that_no_coordinator_would_take_is_refused(capsys: Capture, tmp_path: Path) -> None:
    file = mesh(tmp_path / "m.json", "99999")
    status, out, err = call(capsys, "--manifest", file)
    assert (status, out) == (1, "")
    assert str(file) in err
    assert "99999" in err
