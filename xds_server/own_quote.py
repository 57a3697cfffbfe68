# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's own quote: bound to its root certificate, cached without nonce, fresh with one.

Issuing blocks (the host's quoting service takes part) and is asked for by strangers, so one thread does it, at most
`MAX_WAITING` wait, and each for `timeout` seconds. A quoting service that hangs costs one thread and this endpoint.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from sds.attestation.errors import AttestationError
from sds.attestation.issuer import Issuer
from sds.attestation.report_data import coordinator_report_data
from xds_server.errors import QuoteUnavailable

MAX_WAITING = 32


class OwnQuote:
    """Issues statements about this process, for one root certificate."""

    def __init__(self, issuer: Issuer, root_der: bytes, timeout: float = 10.0) -> None:
        self._issuer = issuer
        self._root_der = root_der
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quote")
        self._waiting = 0
        self._cached: bytes | None = None

    async def start(self) -> None:
        """Issue the quote without nonce; raises QuoteUnavailable, for without it nobody can trust this Coordinator."""
        self._cached = await self._issue(b"")

    async def rebind(self, root_der: bytes) -> None:
        """Speak for another root from now on (recovery); raises QuoteUnavailable, and then for the old one still."""
        cached = await self._issue(b"", root_der)
        self._root_der, self._cached = root_der, cached

    async def get(self, nonce: bytes) -> bytes:
        """The quote in MarbleRun's wire form; `nonce` at most MAX_NONCE bytes. Raises QuoteUnavailable."""
        if not nonce and self._cached is not None:
            return self._cached
        return await self._issue(nonce)

    def stop(self) -> None:
        """Take no more; what is being issued is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _issue(self, nonce: bytes, root_der: bytes | None = None) -> bytes:
        if self._waiting >= MAX_WAITING:
            raise QuoteUnavailable(f"more than {MAX_WAITING} quotes asked for at once: try again")
        report_data = coordinator_report_data(root_der or self._root_der, nonce)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                loop = asyncio.get_running_loop()
                evidence = await loop.run_in_executor(self._thread, self._issuer.issue, report_data)
        except TimeoutError:
            raise QuoteUnavailable(f"no quote within {self._timeout:g} s: is the quoting service running?") from None
        except AttestationError as e:
            raise QuoteUnavailable(f"issuing quote: {e}") from e
        finally:
            self._waiting -= 1
        return evidence.to_wire()
