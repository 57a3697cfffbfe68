# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API: this Marble's X.509-SVID and bundle, for go-spiffe, py-spiffe, spiffe-helper and the like.

    Latest[Credentials] ─► Answers, made once per change ─► every open call whose answer has changed

Sources: SPIFFE Workload API and SPIFFE Workload Endpoint. A call without the security header is refused
(InvalidArgument), one for an identity that is not there (any more) too (PermissionDenied). The JWT-SVID profile is
switched off: nobody in this mesh signs JWTs, and the answer says so (Unimplemented).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from operator import attrgetter

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.local_call import Call, Method, Methods
from enclave_proxy.workload_answers import Answers
from sds.latest import Latest

SERVICE = "/SpiffeWorkloadAPI"
# Keeps a request that somebody talks a browser or another server into sending from counting as a workload's.
SECURITY_HEADER = "workload.spiffe.io"

NO_JWT = (
    "this mesh issues X.509-SVIDs only: its Coordinator signs no JWT-SVIDs, so that there are none to fetch or check"
)
TURNED_OUT = "no identity: this Marble is no longer part of the mesh"
NO_SPIFFE_ID = "no identity: this Marble's certificate has no SPIFFE ID"
EXPIRED = "no identity: this Marble's certificate has expired and its Coordinator has not renewed it"


class WorkloadApi:
    """Serves the newest credentials (None: there are none any more)."""

    def __init__(self, credentials: Latest[Credentials | None], now: Callable[[], datetime]) -> None:
        self._credentials = credentials
        self._now = now
        self._made: tuple[Credentials, Answers | None] | None = None

    @property
    def methods(self) -> Methods:
        """What a local server is given."""
        stream, unary = Cardinality.UNARY_STREAM, Cardinality.UNARY_UNARY
        svid, bundles = attrgetter("svid"), attrgetter("bundles")
        found = (
            Method("FetchX509SVID", stream, lambda call: self._follow(call, svid)),
            Method("FetchX509Bundles", stream, lambda call: self._follow(call, bundles)),
            Method("FetchJWTSVID", unary, _no_jwt),
            Method("FetchJWTBundles", stream, _no_jwt),
            Method("ValidateJWTSVID", unary, _no_jwt),
        )
        return {f"{SERVICE}/{method.name}": method for method in found}

    async def _follow(self, call: Call, part: Callable[[Answers], bytes]) -> None:
        """The answer now, and again whenever it has changed, until the client has enough or there is none."""
        await _request(call)
        last = b""
        async for credentials in self._credentials.changes():
            body = part(self._answers(credentials))
            if body != last:
                await call.send(body)
                last = body

    def _answers(self, credentials: Credentials | None) -> Answers:
        if credentials is None:
            raise GRPCError(Status.PERMISSION_DENIED, TURNED_OUT)
        if self._made is None or self._made[0] is not credentials:
            self._made = (credentials, Answers.of(credentials))
        answers = self._made[1]
        if answers is None:
            raise GRPCError(Status.PERMISSION_DENIED, NO_SPIFFE_ID)
        if credentials.identity.not_after <= self._now():
            raise GRPCError(Status.PERMISSION_DENIED, EXPIRED)
        return answers


async def _request(call: Call) -> None:
    """The request's message has no fields so far; what a future one may ask for cannot be honoured and is not read."""
    if call.metadata(SECURITY_HEADER) != ["true"]:
        raise GRPCError(Status.INVALID_ARGUMENT, f"the request lacks the metadata '{SECURITY_HEADER}: true'")
    if await call.first() is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call carries no request message")


async def _no_jwt(call: Call) -> None:
    await _request(call)
    raise GRPCError(Status.UNIMPLEMENTED, NO_JWT)
