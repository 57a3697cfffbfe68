# SPDX-License-Identifier: Apache-2.0
"""Which status and envelope a refusal gets, in v2 and in v1; and the checks that several endpoints share."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from sds.logs import get_logger
from xds_server.errors import CoordinatorError, FeatureDisabled, NoUpdate, Unauthorized
from xds_server.http_dispatch import Request
from xds_server.http_json import Reply, error, fail
from xds_server.recovery_keys import SecretNotDecrypted

# A manifest of 16 MiB in base64, with room for line breaks in it and the JSON around it.
MANIFEST_BODY = 24 * 1024 * 1024

_log = get_logger(__name__)


def refused(reason: CoordinatorError) -> Reply:
    """v2: what is the client's to repair is a fail, everything else an error."""
    match reason:
        case Unauthorized():
            return fail(HTTPStatus.UNAUTHORIZED, str(reason))
        case SecretNotDecrypted():
            return fail(HTTPStatus.BAD_REQUEST, str(reason))
        case FeatureDisabled():
            return error(HTTPStatus.FORBIDDEN, str(reason))
        case NoUpdate():
            return error(HTTPStatus.NOT_FOUND, str(reason))
        case _:
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, str(reason))


def refused_v1(reason: CoordinatorError, otherwise: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Reply:
    """v1 knows only errors."""
    match reason:
        case Unauthorized():
            return error(HTTPStatus.UNAUTHORIZED, str(reason))
        case NoUpdate():
            return error(HTTPStatus.NOT_FOUND, str(reason))
        case _:
            return error(otherwise, str(reason))


def bad_request(reason: Exception) -> Reply:
    """v2: the query or body is not what the endpoint takes."""
    return fail(HTTPStatus.BAD_REQUEST, str(reason))


def bad_request_v1(reason: Exception) -> Reply:
    return error(HTTPStatus.BAD_REQUEST, str(reason))


def admitted(
    check: Callable[[Request], None], refuse: Callable[[CoordinatorError], Reply]
) -> Callable[[Request], Reply | None]:
    """A check that is made before the body is read: nobody uploads what would be refused whatever it says."""

    def admit(request: Request) -> Reply | None:
        try:
            check(request)
        except CoordinatorError as reason:
            return refuse(reason)
        return None

    return admit


def admitted_v1(check: Callable[[Request], None], path: str) -> Callable[[Request], Reply | None]:
    """The same for an endpoint of version 1 that has a form in version 2."""
    admit = admitted(check, refused_v1)

    def noticed(request: Request) -> Reply | None:
        deprecated(path)
        return admit(request)

    return noticed


def deprecated(path: str) -> None:
    """A v1 endpoint that has a v2 form was used."""
    _log.info(f"Usage of deprecated API endpoint. Consider using /api/v2{path} instead")
