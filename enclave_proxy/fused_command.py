# SPDX-License-Identifier: Apache-2.0
"""A Python command line, run in this interpreter as `python` itself would run it.

`python [-u] [-B] script.py|-m module|-c code [ARG...]`. Everything that an interpreter decides before its first line
of Python (-O, -I, -X, another version) was decided when the worker's own was started: such an option is accepted if it
holds already, else refused by name.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import pkgutil
import re
import runpy
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from enclave_proxy.errors import CommandError

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
# An option, and whether it holds for this interpreter already.
_DECIDED: Mapping[str, Callable[[], bool]] = {
    "O": lambda: sys.flags.optimize > 0,
    "I": lambda: bool(sys.flags.isolated),
    "E": lambda: bool(sys.flags.ignore_environment),
    "s": lambda: bool(sys.flags.no_user_site),
    "S": lambda: bool(sys.flags.no_site),
    "P": lambda: bool(sys.flags.safe_path),
}
_UNCAUGHT = 1
_NO_SUCH_FILE = 2  # what `python nothing.py` ends with


@dataclass(frozen=True, slots=True)
class PythonCommand:
    """What to run; `arguments` is `sys.argv` without its first entry."""

    kind: Literal["script", "module", "code"]
    target: str
    arguments: tuple[str, ...] = ()
    unbuffered: bool = False
    no_bytecode: bool = False

    @classmethod
    def parse(cls, command: Sequence[str]) -> Self:
        """Raises CommandError for what is no Python program, or not this Python's."""
        _check_interpreter(command[0])
        seen: set[str] = set()
        rest = list(command[1:])
        while rest:
            word = rest.pop(0)
            if not word.startswith("-"):
                return cls._make("script", word, rest, seen)
            if word == "-" or word.startswith("--"):
                raise CommandError(f"fused mode cannot run `python {word}`: give a script, -m MODULE or -c CODE")
            for position, letter in enumerate(word[1:], start=1):
                if letter in "mc":
                    target = word[position + 1 :] or (rest.pop(0) if rest else None)
                    if target is None:
                        raise CommandError(f"`python -{letter}` needs an argument")
                    return cls._make("module" if letter == "m" else "code", target, rest, seen)
                _check_option(letter)
                seen.add(letter)
        raise CommandError("fused mode needs something to run: `python script.py`, `python -m MODULE` or `-c CODE`")

    @classmethod
    def _make(cls, kind: Literal["script", "module", "code"], target: str, rest: Sequence[str], seen: set[str]) -> Self:
        return cls(kind, target, tuple(rest), unbuffered="u" in seen, no_bytecode="B" in seen)


def _check_interpreter(program: str) -> None:
    name = Path(program).name
    if not _PYTHON.fullmatch(name):
        raise CommandError(
            f"--fused runs Python programs only, and {program!r} is none: start it as `python -m {name}` if it is "
            "a Python program, else without --fused"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if name.count(".") and name != f"python{version}":
        raise CommandError(f"--fused runs the app in the worker's own Python {version}, not in {name}")
    if "/" not in program:
        return
    # The same binary in another directory is another environment, with other packages.
    path, own = Path(program).absolute(), Path(sys.executable).absolute()
    if path.parent.resolve() != own.parent.resolve() or path.resolve() != own.resolve():
        raise CommandError(f"--fused runs the app in the worker's own Python {str(own)!r}, not in {program!r}")


def _check_option(letter: str) -> None:
    if letter in "uB" or _DECIDED.get(letter, lambda: False)():
        return
    if letter in _DECIDED:
        raise CommandError(
            f"`python -{letter}` cannot be had in fused mode, the interpreter runs already: "
            f"start the worker itself so (`python -{letter} -m marblemesh proxy run --fused ...`)"
        )
    raise CommandError(f"`python -{letter}` cannot be had in fused mode, only -m, -c, -u and -B can")


def run_main(command: PythonCommand, env: Mapping[str, str]) -> int:
    """Run it as `__main__` of this process, on the calling thread; its exit status, once its own code has ended.

    `env` is the app's environment, of which PYTHONPATH, PYTHONUNBUFFERED and PYTHONDONTWRITEBYTECODE are heeded.
    """
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if command.unbuffered or env.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(write_through=True, line_buffering=True)
    if command.no_bytecode or env.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    try:
        _execute(command, env, main)
    except SystemExit as request:
        return _status(request.code)
    except KeyboardInterrupt as error:
        _report(error)
        return 130  # as a shell sees a program that Ctrl-C has ended
    except BaseException as error:
        _report(error)
        return _UNCAUGHT
    return 0


def _execute(command: PythonCommand, env: Mapping[str, str], main: types.ModuleType) -> None:
    match command.kind:
        case "module":
            _paths(str(Path.cwd()), env)
            sys.argv = ["-m", *command.arguments]
            # The worker has imported much of the standard library already, `http.server` for one; runpy finds that odd.
            warnings.filterwarnings("ignore", f"{re.escape(repr(command.target))} found in sys.modules", RuntimeWarning)
            # What `python -m` itself runs, with all its messages.
            runpy._run_module_as_main(command.target)  # type: ignore[attr-defined]
        case "code":
            _paths("", env)
            sys.argv = ["-c", *command.arguments]
            exec(compile(command.target, "<string>", "exec"), main.__dict__)  # noqa: S102 - that is the job
        case "script":
            sys.argv = [command.target, *command.arguments]
            if pkgutil.get_importer(command.target) is not None:  # a directory or archive with a __main__.py
                _paths(command.target, env)
                runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
                return
            _paths(os.path.dirname(os.path.realpath(command.target)), env)  # noqa: PTH120 - what python computes
            _run_script(command.target, main)


def _run_script(path: str, main: types.ModuleType) -> None:
    try:
        with io.open_code(os.path.abspath(path)) as file:  # noqa: PTH100
            source = file.read()
    except OSError as error:
        sys.stderr.write(f"python: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n")
        sys.exit(_NO_SUCH_FILE)
    main.__file__ = path
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    main.__dict__["__cached__"] = None
    exec(compile(source, path, "exec"), main.__dict__)  # noqa: S102 - that is the job


def _paths(first: str, env: Mapping[str, str]) -> None:
    """`sys.path` as the app's own interpreter would have it: its place first, then what PYTHONPATH adds."""
    if sys.flags.safe_path:
        first_entries = []
    else:
        first_entries = [first]
        del sys.path[0]  # the worker's own place
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[:0] = [*first_entries, *added]


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return _UNCAUGHT


def _report(error: BaseException) -> None:
    """Print it as `python` does, without the frames of this file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
