# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_proxy import apply
from enclave_proxy.apply import MAX_STRING, AppParameters, app_command, app_environment, write_files
from enclave_proxy.errors import CommandError, ParametersError
from enclave_proxy.socket_settings import SocketSettings
from sds.wire.marble_pb2 import Parameters

SOCKETS = SocketSettings(sds=Path("/run/m/sds.sock"), workload=Path("/run/m/workload.sock"))
ENDPOINT = "unix:///run/m/workload.sock"


def parsed(**members: object) -> AppParameters:
    return AppParameters.parse(Parameters(**members))  # type: ignore[arg-type]


def environment(inherited: dict[str, str], parameters: AppParameters, *, simulation: bool = True) -> dict[str, str]:
    return app_environment(inherited, parameters, Path("/run/m"), SOCKETS, simulation=simulation)


def test_files_are_private_and_their_parents_too(tmp_path: Path) -> None:
    write_files({"a/b/key.pem": b"hush", str(tmp_path / "abs"): b"x"}, tmp_path)
    assert (tmp_path / "a/b/key.pem").read_bytes() == b"hush"
    assert stat.S_IMODE((tmp_path / "a/b/key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "abs"]


def test_a_file_is_replaced_as_a_whole_and_never_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "config").symlink_to(elsewhere)
    write_files({"config": b"new"}, tmp_path)
    assert (tmp_path / "config").read_text() == "new"
    assert elsewhere.read_text() == "mine"


def test_gramines_keys_come_first_and_by_plain_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    slot = keys / "default"
    slot.write_bytes(b"")
    inode = slot.stat().st_ino
    monkeypatch.setattr(apply, "GRAMINE_KEYS", f"{keys}/")
    with pytest.raises(ParametersError, match="cannot write file '/proc/nope/x'"):
        write_files({"/proc/nope/x": b"", str(slot): b"0123456789abcdef"}, tmp_path)
    assert slot.read_bytes() == b"0123456789abcdef"
    assert slot.stat().st_ino == inode


@pytest.mark.parametrize("path", ["", "a\0b", "../up", "a/../../b", "x" * 4097, "dir/"])
def test_a_path_that_no_manifest_can_mean_is_refused(path: str) -> None:
    with pytest.raises(ParametersError, match="has no usable path"):
        parsed(files={path: b""})


def test_a_reply_with_too_much_in_it_is_refused() -> None:
    with pytest.raises(ParametersError, match="1025 files"):
        parsed(files={str(i): b"" for i in range(1025)})
    with pytest.raises(ParametersError, match=r"environment variable 'A=B'"):
        parsed(env={"A=B": b""})
    with pytest.raises(ParametersError, match="argument 1"):
        parsed(argv=["a", "b\0"])


def test_of_a_marble_with_many_connections_the_app_gets_no_ttls_configuration() -> None:
    """It would be too long to start a program with, and the worker carries these connections."""
    name = "MARBLE_TTLS_CONFIG"
    fits = MAX_STRING - len(name)
    assert parsed(env={name: b"x" * fits, "A": b"b"}).env.keys() == {name, "A"}
    many = parsed(env={name: b"x" * (fits + 1), "A": b"b"})
    assert (many.env, many.left_out) == ({"A": b"b"}, (name,))
    with pytest.raises(ParametersError, match="environment variable 'B' cannot be set"):
        parsed(env={"B": b"x" * MAX_STRING})


def test_parameters_are_never_printed() -> None:
    assert "hush" not in repr(parsed(files={"f": b"hush"}, env={"E": b"hush"}, argv=["hush"]))


def test_the_manifest_overrides_what_is_inherited() -> None:
    env = environment({"PATH": "/bin", "A": "host"}, parsed(env={"A": b"manifest", "RAW": b"\xff"}))
    assert (env["PATH"], env["A"]) == ("/bin", "manifest")
    assert os.fsencode(env["RAW"]) == b"\xff"
    assert env["MARBLEMESH_RUN_DIR"] == "/run/m"
    assert env["MARBLEMESH_SDS_SOCKET"] == "/run/m/sds.sock"
    assert env["SPIFFE_ENDPOINT_SOCKET"] == ENDPOINT


def test_the_workers_own_settings_do_not_reach_the_app() -> None:
    inherited = {
        "EDG_MARBLE_TYPE": "web",
        "EDG_MARBLE_SIMULATION": "1",
        "EDG_SIMULATED_ENCLAVE": "{}",
        "EDG_PCCS_URL": "u",
        "MARBLE_PREDEFINED_ROOT_CA": "planted",
        "MARBLEMESH_RUN_DIR": "planted",
    }
    assert environment(inherited, parsed()) == {
        "EDG_MARBLE_TYPE": "web",
        "MARBLEMESH_RUN_DIR": "/run/m",
        "MARBLEMESH_SDS_SOCKET": "/run/m/sds.sock",
        "SPIFFE_ENDPOINT_SOCKET": ENDPOINT,
    }


def test_a_workload_endpoint_of_the_manifest_stays_and_in_a_tee_none_of_the_hosts_does() -> None:
    elsewhere = {"SPIFFE_ENDPOINT_SOCKET": "tcp://192.0.2.1:1"}
    assert environment(elsewhere, parsed())["SPIFFE_ENDPOINT_SOCKET"] == "tcp://192.0.2.1:1"
    assert environment(elsewhere, parsed(), simulation=False)["SPIFFE_ENDPOINT_SOCKET"] == ENDPOINT
    own = parsed(env={"SPIFFE_ENDPOINT_SOCKET": b"unix:///agent"})
    assert environment(elsewhere, own, simulation=False)["SPIFFE_ENDPOINT_SOCKET"] == "unix:///agent"


def test_a_socket_that_is_off_is_not_named() -> None:
    off = SocketSettings(sds=None, workload=None)
    assert app_environment({}, parsed(), Path("/r"), off, simulation=True) == {"MARBLEMESH_RUN_DIR": "/r"}


def test_in_a_tee_the_hosts_loader_variables_are_dropped_but_not_the_manifests() -> None:
    hostile = {"LD_PRELOAD": "/tmp/x.so", "PYTHONPATH": "/tmp", "SSLKEYLOGFILE": "/tmp/k", "NODE_OPTIONS": "-r x"}
    parameters = parsed(env={"LD_LIBRARY_PATH": b"/opt/lib"})
    in_tee = environment(hostile | {"PATH": "/bin"}, parameters, simulation=False)
    assert {n for n in in_tee if not n.startswith(("MARBLEMESH", "SPIFFE"))} == {"PATH", "LD_LIBRARY_PATH"}
    assert environment(hostile, parameters, simulation=True).items() >= hostile.items()


def test_the_manifests_argv_is_the_command() -> None:
    parameters = parsed(argv=["/app", "--measured"])
    assert app_command((), parameters) == ("/app", "--measured")
    assert app_command(("/app", "--from-host"), parameters) == ("/app", "--measured")
    with pytest.raises(CommandError, match=r"starts '/other' but the manifest's Argv starts '/app'"):
        app_command(("/other",), parameters)


def test_without_argv_the_command_line_is_the_command() -> None:
    assert app_command(("a", "b"), parsed()) == ("a", "b")
    with pytest.raises(CommandError, match="nothing to start"):
        app_command((), parsed())


@given(st.binary(max_size=200))
def test_any_bytes_are_parameters_or_a_clear_error(data: bytes) -> None:
    parameters = Parameters()
    try:
        parameters.MergeFromString(data)
        AppParameters.parse(parameters)
    except (ParametersError, ValueError) as error:
        assert str(error)  # noqa: PT017 - either answer is right, silence is not
    except Exception as error:
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
