# SPDX-License-Identifier: Apache-2.0
"""Verbs that need no Coordinator, and everything that can be wrong with a command line or a file."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marblemesh.cli.app import run
from tests.kit.manifests import manifest, raw
from tests.kit.sigstruct import sigstruct

Capture = pytest.CaptureFixture[str]


def lines(text: str) -> list[str]:
    return text.splitlines()


def call(capsys: Capture, *arguments: str | Path) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments], {})
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    path.write_bytes(raw(manifest()))
    return path


def test_check_accepts_and_prints_the_fingerprint(capsys: Capture, good: Path) -> None:
    fingerprint = hashlib.sha256(good.read_bytes()).hexdigest()
    assert call(capsys, "manifest", "check", good) == (0, f"OK, fingerprint {fingerprint}\n", "")
    status, out, _ = call(capsys, "manifest", "check", good, "-o", "json")
    assert (status, json.loads(out)["manifestFingerprint"], json.loads(out)["valid"]) == (0, fingerprint, True)


def test_signature_prints_the_fingerprint_alone(capsys: Capture, good: Path) -> None:
    fingerprint = hashlib.sha256(good.read_bytes()).hexdigest()
    assert call(capsys, "manifest", "signature", good) == (0, f"{fingerprint}\n", "")
    status, out, _ = call(capsys, "manifest", "signature", good, "-o", "json")
    assert (status, json.loads(out)) == (0, {"manifestFingerprint": fingerprint})


def test_check_prints_every_problem_on_a_line_of_its_own(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(raw(manifest(Marbles={"web": {"Package": "q", "TLS": ["t"]}})))
    status, out, err = call(capsys, "manifest", "check", path)
    assert (status, out) == (1, "")
    assert lines(err) == [
        f"{path}: manifest does not contain marble package q (at Marbles.web.Package)",
        f"{path}: manifest misses TLS entry for t (at Marbles.web.TLS[0])",
    ]
    status, out, err = call(capsys, "manifest", "check", path, "-o", "json")
    assert (status, err) == (1, "")
    assert json.loads(out)["problems"][0] == {
        "path": "Marbles.web.Package",
        "message": "manifest does not contain marble package q",
    }


def test_check_tries_every_template(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    parameters = {"Env": {"KEY": "{{ hex .Secrets.nobody }}"}}
    path.write_bytes(raw(manifest(Marbles={"web": {"Package": "p", "Parameters": parameters}})))
    status, out, err = call(capsys, "manifest", "check", path)
    assert (status, out) == (1, "")
    (line,) = lines(err)
    assert line.startswith(f"{path}: template: data:1:")
    assert line.endswith("secret does not exist (at Marbles.web.Parameters.Env.KEY)")


def test_check_warns_about_what_is_probably_not_meant(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(raw(manifest(Marble={})))
    status, _, err = call(capsys, "manifest", "check", path)
    assert (status, lines(err)) == (0, [f"warning: {path}: unknown member, ignored (at Marble)"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "Packages": {,}\n}', "{path}:2:16: invalid JSON: expecting property name enclosed in double quotes"),
        (b"\x7fELF\x02\x01\x01", "{path}:1:1: invalid JSON: expecting value"),
        (b"\x00\xff\xfe" * 100, "{path}:1:2: invalid JSON: not UTF-8 text"),
        (b"", "marblemesh: manifest '{path}' is empty"),
        (b"[]", "{path}: want a JSON object, got an array"),
        (b"[" * 50_000, "{path}: manifest is nested deeper than 64 levels"),
    ],
    ids=["syntax", "program", "garbage", "empty", "array", "deep"],
)
def test_a_file_that_is_no_manifest_is_one_clear_line(
    capsys: Capture, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    status, out, err = call(capsys, "manifest", "check", path)
    assert (status, out, lines(err)) == (1, "", [message.format(path=path)])


def test_a_file_that_cannot_be_read_is_one_clear_line(capsys: Capture, tmp_path: Path) -> None:
    for name, reason in ((tmp_path, "is a directory"), (tmp_path / "x", "no such file or directory")):
        assert call(capsys, "manifest", "signature", name) == (
            1,
            "",
            f"marblemesh: cannot read manifest '{name}': {reason}\n",
        )


YAML = f"""
# the same as manifest()
Packages:
  p: {{SignerID: "{"ab" * 32}", ProductID: 1, SecurityVersion: 1}}
  vm: {{TDX: {{MRTD: "{"cd" * 48}", RTMR1: "{"01" * 48}", RTMR2: "{"02" * 48}"}}}}
Marbles:
  web: {{Package: p}}
  db: {{Package: vm}}
"""


def test_yaml_is_converted_and_its_fingerprint_is_of_the_json(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(YAML)
    expected = json.dumps(manifest(), separators=(",", ":")).encode()
    assert call(capsys, "manifest", "signature", path)[1].strip() == hashlib.sha256(expected).hexdigest()
    assert call(capsys, "manifest", "check", path)[0] == 0


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: [1", ":1:6", "expected ',' or ']', but got '<stream end>'"),
        ("a: &x [1]\nb: *x\n", ":2:4", "aliases (*name) are not supported"),
        ("a: 1\na: 2\n", ":2:1", "member 'a' occurs twice"),
        ("1: x\n", ":1:1", "member name '1' is no text, put it in quotes"),
        ("a: !!python/object:os.system x\n", ":1:4", "could not determine a constructor"),
        ("a: " + "9" * 100_000, ":1:4", "number is too long"),
        ("\x00\x01", "", "unacceptable character"),
        ("[" * 5000, "", "nested too deep"),
    ],
    ids=["syntax", "alias", "twice", "number", "object", "long", "binary", "deep"],
)
def test_yaml_that_is_refused(capsys: Capture, tmp_path: Path, text: str, place: str, reason: str) -> None:
    path = tmp_path / "m.yml"
    path.write_text(text)
    status, _, err = call(capsys, "manifest", "check", path)
    assert status == 1
    assert len(lines(err)) == 1
    assert err.startswith(f"marblemesh: {path}{place}: invalid YAML: ")
    assert reason in err


def test_yaml_means_what_json_means(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(YAML + "RecoveryKeys: {a: no, b: 22:30, c: 2026-01-01, d: ~}\n")
    assert call(capsys, "manifest", "check", path)[0] == 0


def test_schema_is_json(capsys: Capture) -> None:
    status, out, _ = call(capsys, "manifest", "schema")
    assert (status, json.loads(out)["title"]) == (0, "Marble manifest")


def test_version(capsys: Capture) -> None:
    assert call(capsys, "version")[1].startswith("marblemesh ")
    assert set(json.loads(call(capsys, "version", "-o", "json")[1])) == {"version"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["frobnicate"], "no such command 'frobnicate' (see marblemesh --help)"),
        (["manifest", "frob"], "no such command 'frob' (see marblemesh manifest --help)"),
        (["manifest", "check"], "missing argument 'FILE' (see marblemesh manifest check --help)"),
        (["status", "h:1", "--frob"], "no such option: --frob (see marblemesh status --help)"),
        (["verify", "h:1", "--insecure"], "no such option: --insecure (see marblemesh verify --help)"),
        (["status", "https://h:1"], "want host:port, without https:// or a path"),
        (["status", "h:99999"], "want host:port"),
        (["version", "-o", "xml"], "'xml' is not one of 'text', 'json'"),
        (["status", "h:1", "--simulated-platform", "x"], "--simulated-platform needs --simulation"),
        (
            ["status", "h:1", "--simulation", "--accepted-tcb-statuses", "UpToDate,Revoked"],
            "--accepted-tcb-statuses: 'Revoked' cannot be accepted, known are ConfigurationAndSWHardeningNeeded",
        ),
        (["status", "h:1", "--simulation", "--nonce", "x" * 2000], "--nonce: 2000 bytes, at most 1024 are allowed"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys: Capture, arguments: list[str], reason: str) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out, len(lines(err))) == (2, "", 1)
    assert reason in err


def test_help_teaches_and_lists_the_programs(capsys: Capture) -> None:
    status, out, _ = call(capsys, "--help")
    assert status == 0
    for word in ("manifest", "certificate", "status", "verify", "coordinator", "proxy", "demo", "Try it:"):
        assert word in out
    status, out, _ = call(capsys, "manifest", "set", "--help")
    assert (status, "Example: marblemesh manifest set" in out) == (0, True)


def test_the_program_starts_and_ends_with_its_status(tmp_path: Path) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "marblemesh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    bad = start("manifest", "check", str(tmp_path))
    assert (bad.returncode, bad.stdout, len(lines(bad.stderr))) == (1, "", 1)
    assert start("version").returncode == 0
    assert start("--version").stdout == start("version").stdout
    assert start("nothing").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_its_shell(capsys: Capture, shell: str) -> None:
    status, out, err = call(capsys, "completion", shell)
    assert (status, err, "_MARBLEMESH_COMPLETE" in out) == (0, "", True)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("manifest update ", {"apply", "acknowledge", "cancel", "get"}),
        ("rec", {"recover", "recover-with-signature"}),
    ],
)
def test_the_shell_is_told_what_may_follow(words: str, expected: set[str]) -> None:
    count = len(words.split()) + words.endswith(" ")
    environment = {
        "_MARBLEMESH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"marblemesh {words}",
        "COMP_CWORD": str(count),
        "PATH": str(Path(sys.executable).parent),
    }
    done = subprocess.run([sys.executable, "-m", "marblemesh"], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected


def test_help_lists_every_verb_on_one_page_or_explains_one(capsys: Capture) -> None:
    status, out, _ = call(capsys, "help")
    assert status == 0
    for verb in ("manifest update apply FILE ADDRESS", "secret get NAME... ADDRESS", "recover FILE ADDRESS"):
        assert f"\n    {verb}\n" in out
    assert "EXIT STATUS" in out
    for words in (("manifest", "update", "apply"), ("recover-with-signature", "sign-secret"), ("manifest",)):
        status, out, _ = call(capsys, "help", *words)
        assert (status, f"marblemesh {' '.join(words)}" in out) == (0, True)
    for words in (("nothing",), ("manifest", "nothing"), ("status", "nothing")):
        status, _, err = call(capsys, "help", *words)
        assert (status, lines(err)) == (1, [f"marblemesh: there is no verb {' '.join(words)!r}: see 'marblemesh help'"])


def test_package_info_names_what_is_wrong(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "x.sig"
    path.write_bytes(b"x")
    for place, text in (
        (path, f"{path}: neither an ELF file nor a SIGSTRUCT (Gramine's .sig), which has 1808 bytes"),
        (tmp_path / "missing", f"cannot read package '{tmp_path}/missing': no such file or directory"),
        (
            tmp_path,
            f"{tmp_path}: the directory has no build/lib/libocclum-libos.signed.so, so it is no Occlum instance that "
            "was built",
        ),
    ):
        assert call(capsys, "package-info", place) == (1, "", f"marblemesh: {text}\n")
    path.write_bytes(sigstruct(debug=True))
    status, _, err = call(capsys, "package-info", path)
    assert (status, err.startswith("warning: a debug enclave")) == (0, True)
