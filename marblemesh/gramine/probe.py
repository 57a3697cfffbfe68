# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own interpreter, which may lack everything but the standard library.

`python probe.py` reads a request from stdin and writes an answer to stdout, both JSON; see `answer`. It imports the
request's modules, which loads what they load at once, and then reads the code of everything loaded for imports that
happen later, inside functions, without carrying them out. The standard library and first-party packages are taken
module by module. Of any other package that is reached all files are taken: such packages load parts of themselves by
names that no reading finds, and have data beside their code. From one such package into another only what is loaded at
once, or what its metadata requires, is followed: that another one happens to be installed makes it no part of this
program.
"""

from __future__ import annotations

import dis
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import re
import ssl
import sys
import sysconfig
import zoneinfo
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any

# Parts of the standard library that other parts of it name and no service needs.
LEFT_OUT = frozenset(
    "test tkinter idlelib turtle turtledemo lib2to3 ensurepip pydoc doctest pdb unittest".split()  # noqa: SIM905
)
IMPORT_NAME = dis.opmap["IMPORT_NAME"]
SKIPPED_SUFFIXES = (".pyc", ".pyi", ".pyx", ".c", ".h")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`modules`: to import. `included`: modules, and `scripts`: files, to read for imports and not to run.
    `first_party`: top-level names that are taken module by module. `distributions`: whose metadata is read at run time.
    `closed`: modules whose later imports are not followed.

    Gives `files`, `missing` (modules that were asked for and are not there), `broken` (scripts that this Python cannot
    read, and why) and facts about the interpreter.
    """
    walker = Walker(set(request["first_party"]), set(request["closed"]))
    missing: list[str] = []
    for name in request["modules"]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing.append(error.name or name)
    for name in sorted(sys.modules):
        walker.loaded(name)
    # Found by name, when somebody decodes something: `idna` at the first look-up of a host.
    for found in pkgutil.iter_modules(importlib.import_module("encodings").__path__, "encodings."):
        walker.reach(found.name)
    missing.extend(name for name in request["included"] if not walker.reach(name))
    broken = [why for path in request["scripts"] if (why := walker.script(path))]
    walker.finish()
    for name in request["distributions"]:
        walker.take_folder(metadata_folder(name))
    return {
        "files": sorted(walker.files | set(mapped_files()) | set(start_files())),
        "missing": sorted(set(missing)),
        "broken": broken,
        "executable": sys.executable,
        "time_zones": [path for path in zoneinfo.TZPATH if walker.uses_zones and os.path.isdir(path)],
        "roots": roots(),
    }


class Walker:
    """Follows imports; `files` is what was found, `seen` by module name."""

    def __init__(self, first_party: set[str], closed: set[str]) -> None:
        self.first_party, self.closed = first_party, closed
        self.files: set[str] = set()
        self.seen: set[str] = set()
        self.whole: set[str] = set()
        self.queue: list[tuple[str, str, bool]] = []
        self.uses_zones = False
        self.installed = [os.path.abspath(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
        self.stdlib = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]

    def loaded(self, name: str) -> None:
        """A module of this process: known without looking for it."""
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is None or name == "__main__" or spec is None:
            return
        # Aliases (os.path) and modules made by hand have a spec of another name, or none that can be found again.
        self.reach(spec.name)

    def reach(self, name: str) -> bool:
        """Take a module and its parents; False if there is none of that name."""
        if name in self.seen:
            return True
        parent, _, _ = name.rpartition(".")
        if parent and not self.reach(parent):
            return False
        spec = self.find(name, parent)
        if spec is None:
            return False
        self.seen.add(name)
        # A frozen module is part of the interpreter, which looks for the source all the same: `os.py` is its landmark.
        origin = spec.origin if spec.has_location else getattr(spec.loader_state, "filename", None)
        if origin is None:
            return True  # built in, or a folder without __init__.py
        origin = os.path.abspath(origin)
        self.files.add(origin)
        top = name.partition(".")[0]
        if not self.is_stdlib(origin) and top not in self.first_party:
            self.take_whole(top)
        self.queue.append((name, origin, spec.submodule_search_locations is not None))
        return True

    def find(self, name: str, parent: str) -> ModuleSpec | None:
        if name in sys.builtin_module_names:
            return importlib.machinery.BuiltinImporter.find_spec(name)
        known = getattr(sys.modules.get(name), "__spec__", None)
        if isinstance(known, ModuleSpec):
            return known
        try:
            if not parent:
                for finder in sys.meta_path:
                    spec = finder.find_spec(name, None)
                    if spec is not None:
                        return spec
                return None
            spec = self.find(parent, parent.rpartition(".")[0])
            if spec is None or spec.submodule_search_locations is None:
                return None
            return importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations)
        except (ImportError, AttributeError, ValueError):
            return None

    def is_stdlib(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real.startswith(root + os.sep) for root in self.stdlib) and "site-packages" not in real

    def is_installed(self, path: str) -> bool:
        return any(path.startswith(root + os.sep) for root in self.installed)

    def take_whole(self, top: str) -> None:
        if top in self.whole:
            return
        self.whole.add(top)
        spec = self.find(top, "")
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            self.take_folder(os.path.abspath(folder))
            beside = os.path.abspath(folder) + ".libs"  # where wheels put shared libraries of their own
            if os.path.isdir(beside):
                self.take_folder(beside)
        for info in metadata_folders(top):
            self.take_folder(info)

    def take_folder(self, folder: str) -> None:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name not in ("__pycache__", "tests", "test"))
            self.files.update(os.path.join(place, name) for name in names if not name.endswith(SKIPPED_SUFFIXES))

    def script(self, path: str) -> str:
        """What is wrong with it; empty if nothing is."""
        try:
            with open(path, "rb") as file:
                compile(file.read(), path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            return f"{path!r}{line}: {getattr(error, 'msg', error)}"
        self.files.add(os.path.abspath(path))
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        importlib.invalidate_caches()
        self.queue.append(("", os.path.abspath(path), False))
        self.finish()
        return ""

    def finish(self) -> None:
        while self.queue:
            name, origin, package = self.queue.pop()
            if name in self.closed or (name and not origin.endswith(".py")):  # a script is called as it likes
                continue
            try:
                code = SourceFileLoader(name, origin).get_code(name)  # compiled before, as a rule
            except SyntaxError:
                continue  # written for another version of Python, and never imported by this one
            if code is None:
                continue
            top = name.partition(".")[0]
            first_party, standard = top in self.first_party, bool(name) and self.is_stdlib(origin)
            app = not (first_party or standard or self.is_installed(origin))
            for wanted in imports(code, name, package):
                if first_party or app or self.may_follow(top, standard, wanted.partition(".")[0]):
                    self.reach(wanted)
                self.uses_zones |= app and wanted == "zoneinfo"

    def may_follow(self, top: str, standard: bool, wanted: str) -> bool:
        if wanted in self.seen or wanted == top:
            return True
        if wanted in sys.stdlib_module_names:
            return wanted not in LEFT_OUT
        return not standard and wanted in required(top)


def imports(code: CodeType, name: str, package: bool) -> Iterator[str]:
    """Every module that a module's code may import, in functions too."""
    base = (name if package else name.rpartition(".")[0]).split(".")
    pending = [code]
    while pending:
        block = pending.pop()
        pending.extend(constant for constant in block.co_consts if isinstance(constant, CodeType))
        if IMPORT_NAME not in block.co_code[::2]:
            continue
        for target, level, names in dis._find_imports(block):  # type: ignore[attr-defined]
            source = ".".join([*base[: len(base) - level + 1], *([target] if target else [])]) if level else target
            if source:
                yield source
                yield from (f"{source}.{found}" for found in names or () if found != "*")


@functools.cache
def owners() -> dict[str, list[str]]:
    """Top-level module to the names of the distributions that it belongs to."""
    return dict(importlib.metadata.packages_distributions())


@functools.cache
def metadata_folders(top: str) -> list[str]:
    found = {metadata_folder(name) for name in owners().get(top, ())}
    return sorted(folder for folder in found if os.path.isdir(folder))


def metadata_folder(distribution: str) -> str:
    return str(getattr(importlib.metadata.distribution(distribution), "_path", ""))


@functools.cache
def required(top: str) -> set[str]:
    """The top-level modules of what a module's distribution requires, without its extras."""
    wanted = set()
    for name in owners().get(top, ()):
        for line in importlib.metadata.requires(name) or ():
            requirement, _, marker = line.partition(";")
            named = re.match(r"[\w.-]+", requirement.strip())
            if named is not None and "extra" not in marker:
                wanted.add(plain(named.group()))
    return {module for module, names in owners().items() if any(plain(name) in wanted for name in names)}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def start_files() -> Iterable[str]:
    """What the interpreter reads before the first import, and finds by a name made at run time."""
    yield os.path.abspath(sys.executable)
    if os.path.exists(path := os.path.join(sys.prefix, "pyvenv.cfg")):
        yield path
    data = importlib.util.find_spec(sysconfig._get_sysconfigdata_name())  # type: ignore[attr-defined]
    if data is not None and data.origin is not None:
        yield data.origin
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if os.path.isdir(folder):
            yield from (os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth"))


def roots() -> str | None:
    """The one file with the certificates that TLS to the outside believes."""
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if path and os.path.isfile(path):
            return path
    return None


def mapped_files() -> Iterable[str]:
    """Shared libraries of this process, those among them that were loaded by name."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            _, slash, path = line.rstrip("\n").partition("/")
            if slash and ".so" in path:
                yield slash + path


def main() -> None:
    request = json.load(sys.stdin)
    # What is imported may print; the answer has stdout for itself.
    out = os.dup(1)
    os.dup2(2, 1)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(answer(request), file)


if __name__ == "__main__":
    main()
