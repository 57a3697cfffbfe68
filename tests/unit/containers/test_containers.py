# SPDX-License-Identifier: Apache-2.0
"""The container files, read as they are written: pinned, reproducible, without root. No image is built here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.kit.dockerfile import stages

ROOT = Path(__file__).resolve().parents[3]
CONTAINERS = ROOT / "manifests" / "containers"
FILES = sorted(CONTAINERS.glob("*.Dockerfile"))
PINNED = re.compile(r"([a-z0-9][-a-z0-9_.]*)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}\n")
files = pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)


def test_there_is_one_for_the_coordinator_and_one_for_the_worker() -> None:
    assert [path.stem for path in FILES] == ["coordinator", "worker"]


@files
def test_every_base_is_named_by_a_digest_that_has_to_be_given(file: Path) -> None:
    first, *rest = stages(file)
    given = first.all("ARG")
    assert given == ["PYTHON_DIGEST", "GRAMINE_IMAGE_DIGEST"]  # no default: an empty digest is an invalid name
    for stage in rest:
        assert re.fullmatch(r"[a-z0-9.:-]+@\$\{(PYTHON|GRAMINE_IMAGE)_DIGEST\}", stage.image), stage.image


@files
def test_it_has_a_plain_and_a_gramine_image_and_neither_runs_as_root_or_by_a_shell(file: Path) -> None:
    named = {stage.name: stage for stage in stages(file)}
    assert set(named) == {"", "build", "plain", "sign", "gramine"}
    for name in ("plain", "gramine"):
        final = named[name]
        assert final.all("USER") == ["65532:65532"]
        assert final.all("RUN") == []
        assert json.loads(final.all("ENTRYPOINT")[0])
        assert all(json.loads(command) for command in final.all("CMD"))
        assert all(copy.startswith("--from=") for copy in final.all("COPY"))
        assert any("PYTHONDONTWRITEBYTECODE=1" in env for env in final.all("ENV"))


@files
def test_it_installs_nothing_without_a_hash_and_writes_no_bytecode(file: Path) -> None:
    (build,) = [stage for stage in stages(file) if stage.name == "build"]
    steps = [step for text in build.all("RUN") for step in text.split(" && ")]
    installs = [step for step in steps if " pip " in step]
    assert len(installs) == 4
    for step in installs:
        assert "--require-hashes --only-binary=:all:" in step or "--no-deps --no-index" in step
        assert "--no-compile" in step or " wheel " in step
    environment = " ".join(build.all("ENV"))
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert "SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}" in environment
    assert not re.search(r"apt-get|curl|wget|https?://|latest", file.read_text())


@files
def test_the_enclave_s_key_is_in_no_layer(file: Path) -> None:
    (sign,) = [stage for stage in stages(file) if stage.name == "sign"]
    (run,) = sign.all("RUN")
    assert run.startswith("--mount=type=secret,id=enclave-key,required=true ")
    assert "--key /run/secrets/enclave-key" in run
    assert not [copy for stage in stages(file) for copy in stage.all("COPY") if "key" in copy]


@files
def test_what_it_copies_is_there_and_is_let_into_the_build(file: Path) -> None:
    ignore = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    assert "*" in ignore
    for stage in stages(file):
        for copy in stage.all("COPY"):
            *sources, _ = copy.split()
            if copy.startswith("--from="):
                continue
            for source in sources:
                assert (ROOT / source).exists()
                assert f"!{source.partition('/')[0]}" in ignore


@files
def test_the_manifest_that_is_signed_is_the_one_that_is_started(file: Path) -> None:
    named = {stage.name: stage for stage in stages(file)}
    (run,) = named["sign"].all("RUN")
    _, program = json.loads(named["gramine"].all("ENTRYPOINT")[0])
    assert f"-o {program}.manifest " in run
    assert f"--output {program}.manifest.sgx" in run
    assert named["sign"].all("WORKDIR") == named["gramine"].all("WORKDIR") == ["/enclave"]


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_the_lock_pins_every_direct_dependency_within_its_bounds(name: str) -> None:
    text = (CONTAINERS / name).read_text()
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert PINNED.sub("", body) == ""
    locked = {re.sub(r"[-_.]+", "-", package): version for package, version in PINNED.findall(body)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] if name == "requirements.lock" else project["build-system"]["requires"]
    for requirement in map(Requirement, wanted):
        package = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert package in locked, "run scripts/lock-requirements"
        assert requirement.specifier.contains(locked[package]), f"{package}: run scripts/lock-requirements"
