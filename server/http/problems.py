"""Problem details: every error of the API as one JSON object with a stable code.

Owns the codes, what a mail refusal becomes in HTTP, and the handlers that turn
whatever a route raises into `application/problem+json`. Public text never says
what lies behind it: an unforeseen error is logged here and answered with 500.
RFC 9457 (problem details), RFC 9110 15 (status codes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.refusal import Broken, Refusal
from storage.errors import Conflict, Full, Missing, StorageError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 30
ERRORS_SHOWN = 20

log = structlog.get_logger("http")

_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "timed_out",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "too_many_requests",
    431: "headers_too_large",
    503: "unavailable",
    507: "storage_full",
}


class Problem(HTTPException):
    """An answer that says what went wrong.

    code: stable word for programs. detail: sentence for people. fix: what to do about
    it, '' where nobody can say. extra: further members of the object.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        fix: str = "",
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code
        self.fix = fix
        self.extra = dict(extra or {})

    def response(self) -> Response:
        """Return the answer itself."""
        members: dict[str, object] = {
            "type": "about:blank",  # RFC 9457 4.2.1: the status says it, code is for programs
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "code": self.code,
            "detail": self.detail,
        }
        if self.fix:
            members["fix"] = self.fix
        body = json.dumps(members | self.extra, ensure_ascii=False).encode("utf-8", "replace")
        return Response(body, self.status_code, dict(self.headers or {}), MEDIA_TYPE)


def not_found() -> Problem:
    """Return the one answer for what is not there and for what belongs to somebody else."""
    return Problem(404, "not_found", "There is nothing of that id that this key may see.")


def unavailable(detail: str = "The appliance can't do this for now.") -> Problem:
    """Return the answer that asks to try again."""
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(RETRY_SECONDS)})


def of_refusal(refusal: Refusal) -> Problem:
    """Return the HTTP answer for a mail refusal: its sentence, code and enhanced status code."""
    status, code = _status_of(refusal)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503, 507) else None
    extra = {"smtp_code": refusal.code, "enhanced_code": refusal.enhanced}
    return Problem(status, code, refusal.public, headers=headers, extra=extra)


def _status_of(refusal: Refusal) -> tuple[int, str]:
    subject = refusal.enhanced.partition(".")[2]  # RFC 3463 2: subject.detail, without the class
    if refusal.code == 535:
        return 401, "unauthenticated"
    if refusal.code == 454:
        return 429, "too_many_requests"
    if subject == "3.4" or refusal.code == 552:
        return 413, "too_large"
    if subject == "3.1" and refusal.temporary:
        return 507, "storage_full"
    if refusal.code == 553:
        return 403, "sender_not_owned"
    if subject == "2.2":
        return 422, "recipient_mailbox_full"
    if refusal.temporary:
        return 503, "unavailable"
    if subject.startswith("1."):
        return 422, "recipient_refused"
    if subject.startswith("6."):
        return 422, "content_refused"
    return 422, "refused"


def install(app: FastAPI) -> None:
    """Make an application answer every error with a problem."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(StorageError, _on_storage)
    app.add_exception_handler(Broken, _on_broken)
    app.add_exception_handler(Exception, _on_anything)


async def _on_http(_request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return error.response()
    assert isinstance(error, HTTPException), "registered for it"
    code = _CODES.get(error.status_code, "error")
    detail = error.detail if error.status_code != 404 else "There is nothing at this address."
    return Problem(error.status_code, code, detail, headers=error.headers).response()


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for it"
    return invalid(error.errors()).response()


def invalid(errors: Any, *, place: tuple[str, ...] = ()) -> Problem:
    """Return the answer for pydantic's errors: where and what, never the value that came."""
    shown = [
        {"pointer": _pointer((*place, *one["loc"])), "message": one["msg"]} for one in errors[:ERRORS_SHOWN]
    ]
    return Problem(422, "invalid", "The request is not as the schema says.", extra={"errors": shown})


def _pointer(place: tuple[object, ...]) -> str:
    # RFC 6901: '~' and '/' are escaped inside a token.
    return "".join("/" + str(token)[:100].replace("~", "~0").replace("/", "~1") for token in place)


async def _on_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal), "registered for it"
    return of_refusal(error).response()


async def _on_storage(_request: Request, error: Exception) -> Response:
    if isinstance(error, Missing):
        return not_found().response()
    if isinstance(error, Conflict):
        return Problem(409, "exists_already", "There is one of that name already.").response()
    if isinstance(error, Full):
        problem = Problem(
            507,
            "storage_full",
            "There is no room for this now.",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )
        return problem.response()
    log.error("storage failed", cause=str(error))
    return unavailable().response()


async def _on_broken(_request: Request, error: Exception) -> Response:
    log.error("broken", cause=str(error))
    return unavailable().response()


async def _on_anything(request: Request, error: Exception) -> Response:
    log.error("request failed", path=request.scope.get("route_path", ""), exc_info=error)
    return Problem(500, "internal_error", "The appliance failed; its log says why.").response()
