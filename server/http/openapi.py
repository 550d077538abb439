"""The schema of API v1: OpenAPI 3.1 made from routes and models.

Owns how a route is registered with its body, answer and problems, and the
assembly of the document. Bodies are read by bodies.py, which the framework
can't see, so their schemas are put in here.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from server.http import models
from server.http.problems import MEDIA_TYPE

PREFIX = "/v1"
REF = "#/components/schemas/{model}"
_PROBLEMS = {
    401: "No key, or one that is not in force.",
    403: "The key lacks a scope, or may not do this.",
    404: "There is nothing of that id that this key may see.",
    422: "The request is not as the schema says.",
    429: "Too many failures from this address.",
    503: "Not for now; try again after `Retry-After` seconds.",
}
_BODY_PROBLEMS = {
    408: "The body did not come in time.",
    409: "There is one already, or the idempotency key was used for something else.",
    413: "Too large.",
    415: "Not JSON.",
    507: "No room for it now.",
}
INTRODUCTION = """\
Everything an inbox does, over HTTP. Ask with a key as bearer token. A key acts in its own organization,
a key bound to an inbox in that inbox; what it may not see does not exist for it (404).

Errors are `application/problem+json` (RFC 9457) with a stable `code`. Lists are read page by page:
give `next_cursor` back as `cursor` until it is null. Times are RFC 3339 in UTC, sizes octets.

A message that was answered with 202 is on stable storage. Give an `Idempotency-Key` with a send and repeat
the same request as often as you like within seven days: it is sent once.
"""


def describe(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Callable[..., Awaitable[Response]],
    *,
    tag: str,
    answer: type[BaseModel] | None = None,
    request: type[BaseModel] | None = None,
    status: int = 200,
    media: str = "application/json",
) -> None:
    """Add a route with all that the schema says of it; summary and description are the docstring's."""
    summary, _, rest = inspect.getdoc(endpoint).partition("\n\n")  # type: ignore[union-attr]  # lint wants one
    problems = _PROBLEMS | (_BODY_PROBLEMS if request is not None else {})
    responses: dict[int | str, dict[str, Any]] = {
        code: {
            "description": text,
            "content": {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}},
        }
        for code, text in problems.items()
    }
    responses[status] = {"description": "Done."}
    if answer is not None:
        responses[status]["model"] = answer
    elif status == 200:
        responses[status]["content"] = {media: {"schema": {"type": "string", "format": "binary"}}}
    extra: dict[str, Any] = {}
    if request is not None:
        schema = {"$ref": REF.format(model=request.__name__)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        status_code=status,
        summary=" ".join(summary.split()).rstrip("."),
        description=rest,
        tags=[tag],
        responses=responses,
        response_class=Response,
        response_model=None,
        openapi_extra=extra,
        operation_id=_operation_id(method, path),
    )


def _operation_id(method: str, path: str) -> str:
    words = [word.strip("{}") for word in path.split("/") if word]
    return "_".join([method.lower(), *words])


def install(app: FastAPI, version: str) -> None:
    """Make the application's schema the complete one, built once on first demand."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, version)
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]  # the framework's documented way


def _document(app: FastAPI, version: str) -> dict[str, Any]:
    document = get_openapi(
        title="Mailagents",
        version=version,
        openapi_version="3.1.0",
        description=INTRODUCTION,
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    _, made = models_json_schema([(one, "validation") for one in _unseen()], ref_template=REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(made["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _unseen() -> list[type[BaseModel]]:
    """Return the models that the framework does not meet by itself: bodies, and the problem."""
    found: list[type[BaseModel]] = [models.Problem]
    for one in vars(models).values():
        if isinstance(one, type) and issubclass(one, models.Asked) and one is not models.Asked:
            found.append(one)
    return found
