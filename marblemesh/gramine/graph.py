# SPDX-License-Identifier: Apache-2.0
"""The files of one program: what its Python can import, and the shared libraries of that."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from marblemesh.gramine.errors import GramineError
from marblemesh.gramine.libraries import GLIBC, canonical, interpreter, is_elf, libraries

# Taken module by module, so that a worker's enclave has no file of the Coordinator.
FIRST_PARTY = ("enclave_proxy", "manifests", "marblemesh", "sds", "xds_server")
DISTRIBUTION = "marblemesh"
# It imports the program that was asked for, and could import all others.
DISPATCHER = "marblemesh.__main__"
_PROBE = Path(__file__).with_name("probe.py")
_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Program:
    """What will run. `modules` are imported to see what they load; `scripts` and `included` (modules) are only read;
    `executables` are programs that are no Python; `extra` are further files and folders."""

    modules: tuple[str, ...]
    included: tuple[str, ...] = ()
    scripts: tuple[Path, ...] = ()
    executables: tuple[Path, ...] = ()
    extra: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class FileGraph:
    """Absolute paths, sorted. `libraries` are shared libraries that the loader has to find by name."""

    python: Path
    roots: Path | None  # certificates that TLS to the outside believes
    files: tuple[Path, ...]
    libraries: tuple[Path, ...]
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, answer: dict[str, Any], found: frozenset[Path], folders: tuple[Path, ...]) -> Self:
        files = {Path(name) for name in answer["files"]}
        roots = Path(answer["roots"]) if answer["roots"] else None
        return cls(
            python=Path(answer["executable"]),
            roots=roots,
            files=tuple(sorted(files | ({roots} if roots else set()))),
            libraries=tuple(sorted(found - files)),
            folders=tuple(sorted({*folders, *map(Path, answer["time_zones"])})),
        )


def walk(python: Path, program: Program) -> FileGraph:
    """Ask the environment's own interpreter; takes some seconds. Raises GramineError."""
    answer = _probe(python, program)
    plain = [path.absolute() for path in program.extra if not path.is_dir()]
    folders = tuple(path.absolute() for path in program.extra if path.is_dir())
    executables = [path.absolute() for path in program.executables]
    loaded = {Path(name) for name in answer["files"] if _loaded_library(name)}
    names = {name for name in answer["files"] if Path(name) not in loaded and Path(name).name not in GLIBC}
    names |= {str(path) for path in (*plain, *executables)}
    answer["files"] = sorted(names)
    elf = [path for path in map(Path, answer["files"]) if _may_be_elf(path) and is_elf(path)]
    found = libraries(interpreter(python.resolve()), elf)
    return FileGraph.of(answer, found | _by_name(loaded, found), folders)


def _probe(python: Path, program: Program) -> dict[str, Any]:
    request = {
        "modules": [DISPATCHER, *program.modules],
        "included": program.included,
        "scripts": [str(path) for path in program.scripts],
        "first_party": FIRST_PARTY,
        "distributions": [DISTRIBUTION],
        "closed": [DISPATCHER],
    }
    # -P: a folder that the shell happens to be in is no part of the program.
    command = (str(python), "-B", "-s", "-P", str(_PROBE))
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=_TIMEOUT, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        raise GramineError(f"{str(python)!r} did not tell its imports within {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise GramineError(f"cannot run {str(python)!r}: {(error.strerror or 'error').lower()}") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise GramineError(f"{str(python)!r} cannot import the program: {last[:300]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["missing"]:
        raise GramineError(f"{str(python)!r} has no module {', '.join(map(repr, answer['missing']))}: install it there")
    if answer["broken"]:
        raise GramineError(f"{str(python)!r} cannot read {answer['broken'][0][:300]}")
    return answer


def _may_be_elf(path: Path) -> bool:
    return path.suffix in ("", ".so") or ".so." in path.name


def _loaded_library(name: str) -> bool:
    """One that the process had mapped: by its real name, which is not the name that it is opened by."""
    return ".so." in Path(name).name and "site-packages" not in name


def _by_name(loaded: set[Path], found: frozenset[Path]) -> frozenset[Path]:
    """Libraries that were loaded without being anybody's declared need, under every name beside them."""
    known = {os.path.realpath(path) for path in found}
    missing = {path.resolve() for path in loaded if path.name not in GLIBC and os.path.realpath(path) not in known}
    return frozenset(
        canonical(sibling)
        for path in missing
        for sibling in path.parent.iterdir()
        if sibling.name.startswith(path.name.partition(".so")[0]) and sibling.resolve() == path
    )
