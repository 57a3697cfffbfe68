# SPDX-License-Identifier: Apache-2.0
"""`marblemesh inject` and `uninject`: what they write, report and refuse."""

from __future__ import annotations

import io
import json
import os
import pty
from pathlib import Path

import pytest

from marblemesh.cli import inject_verbs
from marblemesh.cli.app import run
from tests.kit.manifests import manifest, raw

Capture = pytest.CaptureFixture[str]
DATA = Path(__file__).resolve().parents[3] / "data" / "kubernetes"


def call(capsys: Capture, *arguments: str | Path) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments], {})
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def marbles(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    package = next(iter(manifest()["Packages"].values()))
    tags = {"web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "emoji", "Port": "8080"}]}}
    types = ("web", "emoji", "voting", "vote-bot")
    document = manifest(
        Packages={"p": package}, Marbles={name: {"Package": "p", "TLS": ["web"]} for name in types}, TLS=tags
    )
    path.write_bytes(raw(document))
    return path


def test_manifests_go_to_stdout_and_the_report_to_stderr(capsys: Capture) -> None:
    status, out, err = call(capsys, "inject", "-f", DATA / "comments.yaml", "--sgx-resource", "azure")
    assert status == 0
    assert "kubernetes.azure.com/sgx_epc_mem_in_MiB" in out
    assert err.splitlines()[0] == "deployment/web: injected"
    assert "  + spec.volumes: uuid-file, marblemesh-run" in err.splitlines()


def test_uninject_gives_the_file_back(capsys: Capture, tmp_path: Path) -> None:
    injected = tmp_path / "injected.yaml"
    injected.write_bytes(call(capsys, "inject", "-f", DATA / "comments.yaml")[1].encode())
    status, out, err = call(capsys, "uninject", "-f", injected)
    assert (status, out) == (0, (DATA / "comments.yaml").read_text())
    assert err.splitlines() == ["deployment/web: uninjected", "  what was injected"]


def test_who_waits_is_told_what_is_being_done(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inject_verbs, "_PATIENCE", -1.0)
    for verb, steps in (("inject", ["reading", "injecting", "writing"]), ("uninject", ["reading", "writing"])):
        lines = call(capsys, verb, "-f", DATA / "comments.yaml")[2].splitlines()
        assert lines[: len(steps)] == [f"{step} document 1 ..." for step in steps]
    assert "..." not in call(capsys, "inject", "-f", DATA / "comments.yaml", "-o", "json")[2]


def test_the_report_is_json_for_programs(capsys: Capture) -> None:
    _, _, err = call(capsys, "inject", "-f", DATA / "settings-of-its-own.yaml", "-o", "json")
    (found,) = json.loads(err)["objects"]
    assert (found["kind"], found["name"], found["document"], found["outcome"]) == ("Deployment", "web", 1, "injected")
    left = [note["text"] for note in found["notes"] if note["level"] != "added"]
    assert "readinessProbe of container web: it has one; on a port with mTLS it would fail" in left
    assert "variable EDG_MARBLE_TYPE of container web is set already, to another value than web" in left


def test_names_in_the_report_cannot_play_with_the_terminal(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(
        'apiVersion: v1\nkind: Pod\nmetadata: {name: "\\e[31mred\\nx", labels: {marblerun/marbletype: web}}\n'
        "spec: {containers: [{name: web}]}\n"
    )
    status, _, err = call(capsys, "inject", "-f", file)
    assert (status, err.splitlines()[0]) == (0, "pod/?[31mred?x: injected")


def test_nothing_on_stdin_is_an_error_and_a_terminal_is_told_what_is_read(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert call(capsys, "inject") == (
        1,
        "",
        "marblemesh: stdin is empty: pipe Kubernetes objects in, or give a file with --filename\n",
    )
    terminal, other = pty.openpty()
    with os.fdopen(terminal, "wb", buffering=0) as keys, os.fdopen(other) as stdin:
        keys.write(b"\x04")
        monkeypatch.setattr("sys.stdin", stdin)
        _, _, err = call(capsys, "uninject")
    assert err.startswith("reading Kubernetes objects from the terminal: Ctrl-D ends them, --filename names a file\n")


def test_linkerd_s_marks_and_services_follow_from_the_marble_manifest(capsys: Capture, marbles: Path) -> None:
    file = DATA / "emojivoto.yaml"
    status, out, err = call(capsys, "inject", "-f", file, "--manifest", marbles, "--linkerd", "opaque")
    assert status == 0
    assert out.count('config.linkerd.io/opaque-ports: "8080"') == 6  # four pods, two Services on 8080
    assert out.count('config.linkerd.io/opaque-ports: "80"') == 1  # web's Service
    assert out.count("appProtocol: tcp") == 3
    assert "  + spec.ports.80: appProtocol" in err


def test_without_the_marble_manifest_services_are_left_alone_and_that_is_said(capsys: Capture) -> None:
    _, out, err = call(capsys, "inject", "-f", DATA / "emojivoto.yaml")
    assert "appProtocol" not in out
    assert err.count("which of its ports carry mTLS stands in the Marble manifest: give it with --manifest") == 3


def test_a_workload_without_label_is_named(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n")
    assert "pod/p: left alone" in call(capsys, "inject", "-f", file)[2]
    status, out, _ = call(capsys, "inject", "-f", file, "--marble", "p=web", "-n", "shop", "--simulation")
    assert status == 0
    assert '"web,web.shop,web.shop.svc.cluster.local"' in out
    assert "sgx" not in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--wrap",), 2, "--wrap would start the worker outside the enclave"),
        (("--linkerd", "skip"), 2, "--linkerd needs --manifest"),
        (("--marble", "web"), 2, "--marble 'web' is not NAME=TYPE"),
        (("--marble", "a=b", "--marble", "a=c"), 2, "--marble gives 'a' two types"),
        (("--no-worker", "--simulation"), 2, "--simulation needs the worker"),
        (("--admin-addr", "127.0.0.1:15090"), 2, "is loopback: the kubelet's probes come from outside"),
        (("--admin-addr", "0.0.0.0"), 2, "is not IP:port, or off"),
        (("--coord-addr", "nowhere"), 2, "--coord-addr: 'nowhere' is not host:port"),
        (("--cluster-domain", "a b"), 2, "--cluster-domain: 'a b' is not a DNS domain"),
        (("--sgx-resource", "amd"), 2, "--sgx-resource: 'amd' is not intel, azure, alibaba, none or a resource key"),
        (("--manifest", "none.json"), 1, "cannot read manifest 'none.json'"),
        (("--marble", "wbe=web"), 1, "comments.yaml: there is no workload named 'wbe': found web"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_output(
    arguments: tuple[str, ...], status: int, message: str, capsys: Capture
) -> None:
    found = call(capsys, "inject", "-f", DATA / "comments.yaml", *arguments)
    assert (found[0], found[1]) == (status, "")
    assert message in found[2]
    assert found[2].count("\n") == 1


def test_a_manifest_that_cannot_be_injected_gives_status_1_and_no_output(capsys: Capture, tmp_path: Path) -> None:
    status, out, err = call(capsys, "inject", "-f", DATA / "no-containers.yaml")
    assert (status, out) == (1, "")
    assert err.startswith(f"marblemesh: {DATA}/no-containers.yaml: deployment/web (document 1, from line 1): ")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9\n")
    assert call(capsys, "inject", "-f", latin) == (1, "", f"marblemesh: {latin}: byte 3 is not UTF-8\n")
