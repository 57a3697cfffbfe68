# SPDX-License-Identifier: Apache-2.0
"""What an activation brings, checked and put where the app looks for it: files, environment, arguments.

Everything is checked before anything is written. Paths stand in the manifest, so they are the measured deployment's own
business and may be absolute or relative to the working directory, as in MarbleRun; only what no manifest can mean
(NUL, "..", an empty or endless name) is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from enclave_proxy.capture_settings import AppUser
from enclave_proxy.errors import CommandError, ParametersError
from enclave_proxy.socket_settings import SocketSettings
from sds.wire.marble_pb2 import Parameters

# The reply as a whole is bounded by the client (4 MiB); these bound what one reply may do to the file system and to
# execve, whose limit for arguments and environment together is 128 KiB for one string and 2 MiB for all of them.
MAX_FILES = 1024
MAX_VARIABLES = 4096
MAX_ARGUMENTS = 4096
MAX_PATH = 4096
MAX_STRING = 128 * 1024 - 1

# For runtimes that wrap an app's sockets in TLS themselves, which an app beside this worker has not. About 2 KB for
# each connection of the manifest, so that sixty of them are more than a variable can hold.
TTLS_CONFIG = "MARBLE_TTLS_CONFIG"

# Written first and with a plain open: these are Gramine's key slots, not files. Setting one may be what makes the
# mount readable on which all the other files lie; and neither a temporary file beside it nor a rename exists there.
GRAMINE_KEYS = "/dev/attestation/keys/"

# What makes a program load code or read configuration from where the environment says. In a TEE the environment may
# come from the host (Gramine's passthrough, a careless pod template), and then each of these is code execution.
_LOADERS = (
    *("LD_", "DYLD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH", "BASH_ENV", "ENV", "PYTHON", "PERL5"),
    *("RUBYLIB", "RUBYOPT", "NODE_OPTIONS", "NODE_PATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"),
    *("OPENSSL_", "SSL_CERT_", "SSLKEYLOGFILE"),
)
# Ours, or set by the activation and by nobody else: a value from outside could only deceive the app.
_RESERVED = ("MARBLE_PREDEFINED_", TTLS_CONFIG, "MARBLEMESH_")
# Where SPIFFE libraries look for the Workload API (SPIFFE Workload Endpoint, section 4). From outside a TEE it would
# hand the app somebody else's identity and bundle; the manifest may name another endpoint.
WORKLOAD_ENDPOINT = "SPIFFE_ENDPOINT_SOCKET"
# Of the worker's own settings the app sees those that MarbleRun's premain leaves it, and no other.
_KEPT_SETTINGS = frozenset(
    {"EDG_MARBLE_TYPE", "EDG_MARBLE_COORDINATOR_ADDR", "EDG_MARBLE_DNS_NAMES", "EDG_MARBLE_UUID_FILE"}
)


@dataclass(frozen=True, slots=True)
class AppParameters:
    """Checked parameters of the app. Every value may be a secret, so none is printed. `left_out`: variables that are
    too long to be set and that no app of this worker needs."""

    files: Mapping[str, bytes] = field(repr=False)
    env: Mapping[str, bytes] = field(repr=False)
    argv: tuple[str, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @classmethod
    def parse(cls, parameters: Parameters) -> Self:
        """Check a reply as a whole. Raises ParametersError naming the offending entry, never its value."""
        for what, have, limit in (
            ("files", len(parameters.files), MAX_FILES),
            ("environment variables", len(parameters.env), MAX_VARIABLES),
            ("arguments", len(parameters.argv), MAX_ARGUMENTS),
        ):
            if have > limit:
                raise ParametersError(f"the Coordinator sent {have} {what}, at most {limit} are accepted")
        for path in parameters.files:
            _check_path(path)
        left_out = tuple(name for name in (TTLS_CONFIG,) if len(name) + len(parameters.env.get(name, b"")) > MAX_STRING)
        env = {name: value for name, value in parameters.env.items() if name not in left_out}
        for name, value in env.items():
            if not name or "=" in name or "\0" in name or b"\0" in value or len(name) + len(value) > MAX_STRING:
                raise ParametersError(f"environment variable {name[:80]!r} cannot be set: NUL, '=' or too long")
        for index, argument in enumerate(parameters.argv):
            if "\0" in argument or len(argument) > MAX_STRING:
                raise ParametersError(f"argument {index} cannot be passed: NUL or too long")
        return cls(dict(parameters.files), env, tuple(parameters.argv), left_out)


def _check_path(path: str) -> None:
    if not path or "\0" in path or len(path.encode()) > MAX_PATH or ".." in Path(path).parts or path.endswith("/"):
        raise ParametersError(f"file {path[:80]!r} has no usable path: give it a name without '..' and NUL")


def write_files(files: Mapping[str, bytes], base: Path, owner: AppUser | None = None) -> None:
    """Write each file complete or not at all; parents 0700, files 0600. Relative paths lie under `base`. `owner` gets
    what is made; None: the worker's own user.

    Raises ParametersError naming the file and the reason.
    """
    for path in sorted(files, key=lambda name: (not name.startswith(GRAMINE_KEYS), name)):
        try:
            if path.startswith(GRAMINE_KEYS):
                Path(path).write_bytes(files[path])
            else:
                _write_atomically(base / path, files[path], owner)
        except OSError as error:
            raise ParametersError(f"cannot write file {path!r}: {error.strerror}") from error


def _write_atomically(path: Path, content: bytes, owner: AppUser | None) -> None:
    with ExitStack() as stack:
        folder: int | None = None
        if owner is None:
            for parent in reversed(path.parents):
                if not parent.is_dir():
                    parent.mkdir(mode=0o700, exist_ok=True)
        else:
            folder = _folder(path.absolute().parent, owner)
            stack.callback(os.close, folder)
            path = Path(path.name)
        temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.new")
        _unlink(temporary, folder)  # left by a worker with our process id that was killed
        stack.callback(_unlink, temporary, folder)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), owner.uid, owner.gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)


def _unlink(path: Path, folder: int | None) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path, dir_fd=folder)


def _folder(path: Path, owner: AppUser) -> int:
    """A descriptor of a folder, which is made if it is not there, and is the owner's then. Step by step: a symbolic
    link that the owner could have put there would have us write where it may not. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open("/", flags)
    for name in path.parts[1:]:
        outer = folder
        try:
            follow = 0 if not _may_change(os.fstat(outer), owner) else os.O_NOFOLLOW
            try:
                folder = os.open(name, flags | follow, dir_fd=outer)
            except FileNotFoundError:
                os.mkdir(name, 0o700, dir_fd=outer)
                folder = os.open(name, flags | os.O_NOFOLLOW, dir_fd=outer)
                os.fchown(folder, owner.uid, owner.gid)
        finally:
            os.close(outer)
    return folder


def _may_change(folder: os.stat_result, owner: AppUser) -> bool:
    groups = folder.st_gid == owner.gid and folder.st_mode & stat.S_IWGRP
    return folder.st_uid == owner.uid or bool(groups or folder.st_mode & stat.S_IWOTH)


def app_environment(
    inherited: Mapping[str, str], parameters: AppParameters, run_dir: Path, sockets: SocketSettings, *, simulation: bool
) -> dict[str, str]:
    """What the app sees: the worker's environment without the worker's own settings, then the manifest's, then ours.

    Outside simulation the variables that make a loader or an interpreter run foreign code are dropped unless the
    manifest itself sets them. Values keep arbitrary bytes by surrogateescape, as `os.environ` does.
    """
    env = {name: value for name, value in inherited.items() if not _withheld(name, simulation)}
    env |= {name: os.fsdecode(value) for name, value in parameters.env.items()}
    env["MARBLEMESH_RUN_DIR"] = str(run_dir)
    if sockets.sds is not None:
        env["MARBLEMESH_SDS_SOCKET"] = str(sockets.sds)
    if sockets.workload is not None:
        env.setdefault(WORKLOAD_ENDPOINT, f"unix://{sockets.workload}")
    return env


def _withheld(name: str, simulation: bool) -> bool:
    if name.startswith("EDG_"):
        return name not in _KEPT_SETTINGS
    return name.startswith(_RESERVED) or (not simulation and name.startswith((*_LOADERS, WORKLOAD_ENDPOINT)))


def app_command(command: Sequence[str], parameters: AppParameters) -> tuple[str, ...]:
    """The program and its arguments: the manifest's Argv if it has one, else the worker's own command line.

    Argv is attested, the command line is not. So where both are given Argv is what runs, and a command line that names
    another program is an error rather than a silent loss.
    """
    if parameters.argv:
        if command and command[0] != parameters.argv[0]:
            raise CommandError(
                f"the command line starts {command[0]!r} but the manifest's Argv starts {parameters.argv[0]!r}: "
                "drop the command, or make the two agree"
            )
        return parameters.argv
    if not command:
        raise CommandError("there is nothing to start: give a command after `--`, or Parameters.Argv in the manifest")
    return tuple(command)
