# SPDX-License-Identifier: Apache-2.0
"""Capture, begun: nobody else captures here, the packet filter can do it, and the other one's rules are gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from enclave_proxy.access_log import AccessLog
from enclave_proxy.capture_firewall import FirewallError, choose
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.capture_rules import CaptureRules
from enclave_proxy.capture_settings import CaptureSettings, check_privileges
from enclave_proxy.errors import ConfigError, StartError
from enclave_proxy.limits import Limits
from enclave_proxy.relay import Log

# An abstract name is one of the network namespace, as the rules are, and goes with the process that has it.
_CLAIM = "\0marblemesh-capture"
_STATUS = Path("/proc/self/status")


def check_here(settings: CaptureSettings, *, sgx: bool) -> None:
    """See check_privileges; of this process."""
    if settings.on or settings.app_user is not None:
        check_privileges(settings, _STATUS.read_text(), os.geteuid(), sgx=sgx)


async def capturing_relay(
    log: Log, limits: Limits, settings: CaptureSettings, access_log: AccessLog | None
) -> CapturingRelay:
    """Ready for its first configuration. Rules of a worker that was killed stay until then: they let nothing out.
    Raises ConfigError, StartError."""
    user = settings.app_user
    if user is None:
        raise ConfigError("capture needs a user for the app")
    claim = _claim()
    try:
        firewall, others = choose(settings.mode)
        worker = os.geteuid()
        await firewall.check(_every_kind(worker, settings.proxies))
        for other in others:
            try:
                await other.remove()
            except FirewallError as error:
                # If anything of ours is there and takes what it should not, the first look finds out.
                log.info("cannot look whether an earlier worker has left other rules", reason=str(error))
        return CapturingRelay(log, limits, firewall, worker, user.uid, settings.proxies, access_log, claim)
    except FirewallError as error:
        claim.close()
        raise StartError(f"capture is not possible here: {error}") from error
    except BaseException:
        claim.close()
        raise


def _every_kind(worker: int, proxies: frozenset[int]) -> CaptureRules:
    """Rules of every kind that there can be, to know early whether this kernel has them."""
    return CaptureRules(
        capture=1, outgoing=frozenset({1}), incoming=((1, 2),), closed=frozenset({3}), worker=worker, proxies=proxies
    )


def _claim() -> socket.socket:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(_CLAIM)
    except OSError as error:
        claim.close()
        raise StartError(
            "another worker captures in this network namespace, and one set of rules serves one worker: "
            f"stop it, or give this one a namespace (a pod) of its own ({error.strerror})"
        ) from error
    return claim
