# SPDX-License-Identifier: Apache-2.0
"""What a rendered manifest says: options that Gramine knows, files that exist, nothing that lets the host in."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from marblemesh.gramine import FileGraph, GramineError, Kind, Program, Settings, make_plan, render, walk
from marblemesh.gramine.libraries import GLIBC, interpreter, libraries
from marblemesh.gramine.plan import PASSED

# Gramine's manifest syntax (1.9): every option, by its whole name. A `*` stands for names of one's own.
KNOWN = frozenset(
    {
        "libos.entrypoint",
        "libos.check_invalid_pointers",
        "loader.entrypoint.uri",
        "loader.argv",
        "loader.argv_src_file",
        "loader.env.*",
        "loader.env_src_file",
        "loader.log_level",
        "loader.log_file",
        "loader.uid",
        "loader.gid",
        "loader.insecure__use_cmdline_argv",
        "loader.insecure__use_host_env",
        "loader.insecure__disable_aslr",
        "fs.mounts",
        "fs.root",
        "fs.start_dir",
        "fs.insecure__keys",
        "sys.stack.size",
        "sys.brk.max_size",
        "sys.fds.limit",
        "sys.disallow_subprocesses",
        "sys.enable_sigterm_injection",
        "sys.enable_extra_runtime_domain_names_conf",
        "sys.experimental__enable_flock",
        "sys.insecure__allow_eventfd",
        "sys.allowed_ioctls",
        "sys.ioctl_structs",
        "sys.debug__mock_syscalls",
        "sgx.allowed_files",
        "sgx.trusted_files",
        "sgx.debug",
        "sgx.edmm_enable",
        "sgx.enclave_size",
        "sgx.file_check_policy",
        "sgx.isvprodid",
        "sgx.isvsvn",
        "sgx.max_threads",
        "sgx.preheat_enclave",
        "sgx.remote_attestation",
        "sgx.seal_key",
        "sgx.use_exinfo",
        "sgx.insecure__rpc_thread_num",
        "sgx.insecure__allow_memfaults_without_exinfo",
        "sgx.cpu_features",
        "sgx.enable_stats",
    }
)
GRAPH = FileGraph(
    python=Path("/opt/venv/bin/python"),
    roots=Path("/etc/ssl/certs/ca-certificates.crt"),
    files=tuple(
        map(
            Path,
            (
                "/etc/ssl/certs/ca-certificates.crt",
                "/opt/venv/bin/python",
                "/opt/venv/lib/python3.11/site-packages/a/__init__.py",
                "/opt/venv/lib/python3.11/site-packages/a/b/c.py",
                "/opt/venv/pyvenv.cfg",
            ),
        )
    ),
    libraries=(Path("/usr/lib/x86_64-linux-gnu/libz.so.1"),),
    folders=(Path("/srv/data"),),
)
SETTINGS = {
    Kind.COORDINATOR: Settings(
        kind=Kind.COORDINATOR, data_dir="/coordinator/data", hosts=Path("/opt/hosts"), product_id=3, security_version=4
    ),
    Kind.WORKER: Settings(
        kind=Kind.WORKER,
        data_dir="/web-uid",
        marble_type="web",
        command=("/usr/sbin/nginx", "-g", 'daemon off; # "quoted" \\ ü'),
        hosts=Path("/opt/hosts"),
        product_id=3,
        security_version=4,
    ),
    Kind.FUSED: Settings(
        kind=Kind.FUSED,
        data_dir="/web-uid",
        marble_type="web",
        command=("python", "/app/app.py"),
        era_config=Path("/opt/era-config.json"),
        env={"GREETING": "hello", "EDG_MARBLE_ADMIN_ADDR": "off"},
        hosts=Path("/opt/hosts"),
        product_id=3,
        security_version=4,
    ),
}


def text(kind: Kind, settings: Settings | None = None, graph: FileGraph = GRAPH) -> str:
    template = (files("manifests") / "gramine" / f"{kind}.manifest.template").read_text()
    return render(template, make_plan(graph, settings or SETTINGS[kind]))


def manifest(kind: Kind, settings: Settings | None = None, graph: FileGraph = GRAPH) -> dict[str, Any]:
    return tomllib.loads(text(kind, settings, graph))


def options(table: dict[str, Any], above: str = "") -> set[str]:
    names = set()
    for name, value in table.items():
        whole = f"{above}{name}"
        if above == "loader.env.":
            names.add("loader.env.*")
        elif isinstance(value, dict) and whole not in KNOWN:
            names |= options(value, f"{whole}.")
        else:
            names.add(whole)
    return names


@pytest.mark.parametrize("kind", Kind)
def test_gramine_knows_every_option(kind: Kind) -> None:
    assert options(manifest(kind)) <= KNOWN


@pytest.mark.parametrize("kind", Kind)
def test_nothing_insecure_is_switched_on(kind: Kind) -> None:
    found = manifest(kind)
    assert not [name for name in options(found) if "insecure" in name or "experimental" in name or "debug__" in name]
    assert found["sgx"]["debug"] is False
    assert found["sgx"]["remote_attestation"] == "dcap"
    assert found["sgx"]["file_check_policy"] == "strict"
    assert found["loader"]["log_level"] == "error"


@pytest.mark.parametrize("kind", Kind)
def test_the_host_may_write_one_folder_and_no_trusted_file_lies_in_it(kind: Kind) -> None:
    found = manifest(kind)
    assert found["sgx"]["allowed_files"] == [f"file:{SETTINGS[kind].data_dir}/"]
    assert not [entry for entry in found["sgx"]["trusted_files"] if entry.startswith(found["sgx"]["allowed_files"][0])]


def test_code_in_the_folder_that_the_host_may_write_is_refused() -> None:
    graph = replace(GRAPH, files=(*GRAPH.files, Path("/web-uid/app.py")))
    with pytest.raises(GramineError, match=r"'/web-uid/app.py' lies in '/web-uid', which the host may write"):
        manifest(Kind.FUSED, graph=graph)


@pytest.mark.parametrize("folder", ["/", "relative", "/a/../b"])
def test_a_data_folder_is_one_of_its_own(folder: str) -> None:
    with pytest.raises(GramineError, match="not the absolute path of a folder of its own"):
        manifest(Kind.COORDINATOR, replace(SETTINGS[Kind.COORDINATOR], data_dir=folder))


@pytest.mark.parametrize("kind", Kind)
def test_every_trusted_file_is_mounted_under_the_path_that_it_is_opened_by(kind: Kind) -> None:
    found = manifest(kind)
    outside = [mount["uri"] for mount in found["fs"]["mounts"] if "uri" in mount]
    for entry in found["sgx"]["trusted_files"]:
        assert any(entry.rstrip("/") == uri or entry.startswith(f"{uri}/") for uri in outside), entry
    inside = [mount["path"] for mount in found["fs"]["mounts"]]
    assert len(inside) == len(set(inside))
    assert {"/run", "/tmp"} == {mount["path"] for mount in found["fs"]["mounts"] if mount.get("type") == "tmpfs"}


@pytest.mark.parametrize("kind", Kind)
def test_the_host_is_asked_for_addresses_and_names_and_for_nothing_that_decides_about_trust(kind: Kind) -> None:
    env = manifest(kind)["loader"]["env"]
    passed = {name for name, value in env.items() if value == {"passthrough": True}}
    assert passed
    for name in passed:
        assert name.endswith(("_ADDR", "_NAMES", "_URL", "_ADVERTISE", "_LOG_LEVEL"))
    assert env["EDG_ATTESTATION_PLATFORM"] == "gramine"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert env["LD_LIBRARY_PATH"].split(":")[0] == "/lib"


def test_a_variable_that_is_given_is_measured_and_not_the_host_s_any_more() -> None:
    env = manifest(Kind.FUSED)["loader"]["env"]
    assert env["GREETING"] == "hello"
    assert "EDG_MARBLE_ADMIN_ADDR" in PASSED[Kind.WORKER]
    assert env["EDG_MARBLE_ADMIN_ADDR"] == "off"
    assert text(Kind.FUSED).count("EDG_MARBLE_ADMIN_ADDR") == 1


def test_a_marble_s_type_uuid_file_and_pin_are_measured() -> None:
    found = manifest(Kind.FUSED)
    env = found["loader"]["env"]
    assert env["EDG_MARBLE_TYPE"] == "web"
    assert env["EDG_MARBLE_UUID_FILE"] == "/web-uid/uuid-file"
    assert {"path": env["EDG_MARBLE_ERA_CONFIG"], "uri": "file:/opt/era-config.json"} in found["fs"]["mounts"]
    assert "file:/opt/era-config.json" in found["sgx"]["trusted_files"]


def test_arguments_arrive_as_they_were_given() -> None:
    argv = manifest(Kind.WORKER)["loader"]["argv"]
    assert argv[-3:] == list(SETTINGS[Kind.WORKER].command)
    assert argv[:-3] == ["/opt/venv/bin/python", "-P", "-m", "marblemesh", "proxy", "run", "--"]
    assert manifest(Kind.FUSED)["loader"]["argv"][-4:] == ["--fused", "--", "python", "/app/app.py"]
    assert manifest(Kind.COORDINATOR)["loader"]["argv"][-1] == "coordinator"


def test_only_a_worker_with_a_child_may_start_processes() -> None:
    for kind in Kind:
        assert manifest(kind)["sys"].get("disallow_subprocesses", False) is (kind is not Kind.WORKER)


def test_a_path_that_toml_cannot_hold_is_refused() -> None:
    graph = replace(GRAPH, files=(*GRAPH.files, Path("/srv/a\nb.py")))
    with pytest.raises(GramineError, match="a character that a manifest cannot hold"):
        manifest(Kind.FUSED, graph=graph)


def test_a_template_that_asks_for_something_unknown_is_refused() -> None:
    with pytest.raises(GramineError, match="'@colour@'"):
        render("a = @colour@", make_plan(GRAPH, SETTINGS[Kind.COORDINATOR]))


def test_the_same_environment_gives_the_same_text_and_every_file_in_it_exists(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("def late():\n    import colorsys, helper\n")
    (tmp_path / "helper.py").write_text("import zoneinfo\n")
    program = Program(modules=(), scripts=(app,))
    graph = walk(Path(sys.executable), program)
    assert graph == walk(Path(sys.executable), program)
    paths = (*graph.files, *graph.libraries, *graph.folders)
    assert [path for path in paths if not path.exists()] == []
    assert {"colorsys.py", "helper.py", "idna.py", "stringprep.py", "os.py"} <= {path.name for path in graph.files}
    assert "zoneinfo" in {path.name for path in graph.folders} or not Path("/usr/share/zoneinfo").exists()
    assert not {path.name for path in (*graph.files, *graph.libraries)} & GLIBC
    assert not [path for path in graph.files if path.suffix == ".pyc"]


def test_what_an_app_s_own_module_imports_is_followed_into_other_packages(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("import helper\n")
    (tmp_path / "helper.py").write_text("def late():\n    import yaml\n")
    alone = walk(Path(sys.executable), Program(modules=()))
    graph = walk(Path(sys.executable), Program(modules=(), scripts=(app,)))
    added = {path.parent.name for path in set(graph.files) - set(alone.files)}
    assert "yaml" in added
    assert any(name.startswith("pyyaml") and name.endswith(".dist-info") for name in added)


def test_a_script_may_be_called_as_it_likes(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.write_text("#!/usr/bin/env python\ndef late():\n    import colorsys\n")
    files = walk(Path(sys.executable), Program(modules=(), scripts=(app,))).files
    assert {app.name, "colorsys.py"} <= {path.name for path in files}


@pytest.mark.parametrize(
    ("text", "why"), [(b"x = 1\ndef x(:\n", "line 2: "), (b"\0", "null bytes"), (b"\xff", "utf-8")]
)
def test_an_app_that_python_cannot_read_is_not_measured(tmp_path: Path, text: bytes, why: str) -> None:
    app = tmp_path / "app.py"
    app.write_bytes(text)
    with pytest.raises(GramineError, match=rf"cannot read '{app}'.*{why}"):
        walk(Path(sys.executable), Program(modules=(), scripts=(app,)))


def test_a_missing_module_is_named() -> None:
    with pytest.raises(GramineError, match="has no module 'no_such_module': install it there"):
        walk(Path(sys.executable), Program(modules=(), included=("no_such_module",)))


def test_an_environment_without_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(GramineError, match=r"cannot run .*no such file"):
        walk(tmp_path / "bin" / "python", Program(modules=()))


def test_libraries_come_under_the_names_by_which_they_are_opened() -> None:
    python = Path(sys.executable).resolve()
    loader = interpreter(python)
    assert loader.name.startswith("ld-")
    found = libraries(loader, [python])
    assert all(path.exists() and path.name not in GLIBC for path in found)


def test_a_program_without_a_dynamic_loader_is_refused(tmp_path: Path) -> None:
    static = tmp_path / "static"
    static.write_bytes(b"\x7fELF\x02\x01" + bytes(58))
    with pytest.raises(GramineError, match="linked statically"):
        interpreter(static)


def test_a_file_that_is_no_executable_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(GramineError, match="no 64-bit ELF executable"):
        interpreter(script)
