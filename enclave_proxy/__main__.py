# SPDX-License-Identifier: Apache-2.0
"""`marblemesh proxy run [flags] [--] CMD...`: the worker's command line, and the only reader of its environment."""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import uvloop
from structlog.typing import FilteringBoundLogger

from enclave_proxy.collector import spare_what_is_loaded
from enclave_proxy.config import WorkerConfig
from enclave_proxy.descriptors import take_all
from enclave_proxy.errors import ConfigError, ProxyError
from enclave_proxy.flags import ABOUT, FLAGS
from enclave_proxy.fused import Fused
from enclave_proxy.fused_logs import private_logger
from enclave_proxy.signals import Signals
from enclave_proxy.worker import Worker
from sds.errors import SdsError
from sds.flags import USAGE_STATUS, read
from sds.logs import configure, get_logger

_GROUP = """usage: marblemesh proxy run [OPTIONS] [--] CMD...

The worker in front of an app, inside its TEE. All about `run`: marblemesh proxy run --help

What a running one does: marblemesh proxy status
"""


def _run(flags: dict[str, str], command: tuple[str, ...]) -> int:
    env = dict(os.environ)
    try:
        config = WorkerConfig.load(env, flags, command, cwd=Path.cwd(), runtime_dir=_runtime_dir(env))
    except ConfigError as error:
        sys.stderr.write(f"marblemesh proxy: {error}\n")
        return error.exit_code
    configure(config.log_level, config.log_format, config.simulation)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it logs every header of every request at debug level
    logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)  # a traceback for whatever a client does wrong
    log = get_logger("worker", marble_type=config.marble_type)
    # A core dump is every key in one file on the host's disk. The app inherits this and may raise it again.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    descriptors = take_all()
    if not config.fused:
        return _work(Worker(config, env, log, descriptors=descriptors), log)
    log = private_logger(marble_type=config.marble_type)
    fused = Fused(log)
    return fused.run(lambda: _work(Worker(config, env, log, Signals(fused.signals.caught), fused), log))


def _work(worker: Worker, log: FilteringBoundLogger) -> int:
    spare_what_is_loaded()
    try:
        return uvloop.run(worker.run())
    except (ProxyError, SdsError) as error:
        log.error("cannot go on", reason=str(error))
        return error.exit_code if isinstance(error, ProxyError) else ProxyError.exit_code


def _runtime_dir(env: dict[str, str]) -> Path:
    """Where run directories lie by default: what the system gives for that, else a directory of the user's own."""
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "marblemesh"
    if os.geteuid() == 0:
        return Path("/run/marblemesh")
    return Path(tempfile.gettempdir()) / f"marblemesh-{os.geteuid()}"


def main() -> None:
    """Run, whether called as `marblemesh proxy ...` or as `python -m enclave_proxy ...`."""
    arguments = sys.argv[2:] if sys.argv[1:2] == ["proxy"] else sys.argv[1:]
    match arguments:
        case ["run", *rest]:
            given = read("marblemesh proxy run", ABOUT, FLAGS, rest, command=True)
            sys.exit(_run({flag: value for flag, value in given.values.items() if value}, given.command))
        case ["--help" | "-h"]:
            sys.stdout.write(_GROUP)
        case []:
            _wrong(_GROUP)
        case [word, *_]:
            _wrong(f"marblemesh proxy: no such command or option: {word} (see marblemesh proxy --help)\n")


def _wrong(text: str) -> NoReturn:
    sys.stderr.write(text)
    sys.exit(USAGE_STATUS)


if __name__ == "__main__":
    main()
