# SPDX-License-Identifier: Apache-2.0
"""Libraries with sockets of their own, met when the app imports them: adapted, or refused by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# They replace Python's sockets by classes of their own, which would open TCP past the worker.
REFUSED = frozenset({"gevent", "eventlet"})


class ImportWatch(MetaPathFinder):
    """`after`: what to do when a module has just been imported for the first time, by its name."""

    def __init__(self, after: Mapping[str, Callable[[], None]]) -> None:
        self._after = dict(after)

    def install(self) -> None:
        """Watch from now on; modules that are there already are adapted at once."""
        for name in [name for name in self._after if name in sys.modules]:
            self._after.pop(name)()
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Part of the import system: never finds anything new, only watches."""
        if fullname in REFUSED:
            raise ImportError(
                f"{fullname} has sockets of its own, which fused mode cannot watch: use threads or asyncio, "
                "or run the app without --fused",
                name=fullname,
            )
        if (action := self._after.pop(fullname, None)) is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_adapt(module: ModuleType) -> None:
                execute(module)
                action()

            spec.loader.exec_module = execute_and_adapt  # type: ignore[method-assign]
        return spec
