"""The schema of API v1: OpenAPI 3.1 made from routes and models.

Owns how a route is registered with its body, answer and problems, and the
assembly of the document. Bodies are read by bodies.py, which the framework
can't see, so their schemas are put in here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_origin

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from server.http import models, queue_models, suppression_models
from server.http.access import Access
from server.http.problems import MEDIA_TYPE, invalid

PREFIX = "/v1"
REF = "#/components/schemas/{model}"
_PATH_PARAMETER = re.compile(r"{(\w+)}")
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


class Door:
    """Adds routes to an application, each with its scope, its query and all that the schema says of it.

    The framework is asked for routing and the document; who asks and what the query says
    is settled here, at a tenth of the cost of its own dependencies.
    """

    def __init__(self, app: FastAPI, access: Access) -> None:
        self._app = app
        self._access = access

    def add(
        self,
        place: str,
        handler: Callable[..., Awaitable[Response]],
        *,
        tag: str,
        scope: str | None = None,
        query: type[BaseModel] | None = None,
        header: Mapping[str, object] | None = None,
        request: type[BaseModel] | None = None,
        answer: type[BaseModel] | None = None,
        status: int = 200,
        media: str = "application/json",
    ) -> None:
        """Add a route at `METHOD /path`; summary and description are the handler's docstring.

        handler: called by keyword with the path's parameters as text, `caller` where there is a
        scope (then the path is the API's), `query` where there is a model of it, and `request`
        if it takes one. header: the schema of a header field that the handler reads itself.
        """
        method, _, path = place.partition(" ")
        path = path if scope is None else PREFIX + path
        summary, _, rest = (inspect.getdoc(handler) or "").partition("\n\n")
        self._app.add_api_route(
            path,
            self._endpoint(handler, scope, query),
            methods=[method],
            status_code=status,
            summary=" ".join(summary.split()).rstrip("."),
            description=rest,
            tags=[tag],
            responses=_responses(scope, request, answer, status, media),
            response_class=Response,
            response_model=None,
            openapi_extra=_extra(path, scope, query, header, request),
            operation_id=_operation_id(method, path),
        )

    def _endpoint(
        self,
        handler: Callable[..., Awaitable[Response]],
        scope: str | None,
        query: type[BaseModel] | None,
    ) -> Callable[[Request], Awaitable[Response]]:
        access = self._access
        unasked = None if query is None else query()
        wants_request = "request" in inspect.signature(handler).parameters

        async def endpoint(request: Request) -> Response:
            given: dict[str, Any] = dict(request.path_params)
            if wants_request:
                given["request"] = request
            if scope is not None:
                given["caller"] = await access.admit(request, scope)
            if query is not None:
                given["query"] = _parse(request, query) if request.url.query else unasked
            return await handler(**given)

        return endpoint


def _parse(request: Request, query: type[BaseModel]) -> BaseModel:
    given = request.query_params
    lists = {name for name, field in query.model_fields.items() if get_origin(field.annotation) is list}
    values = {name: given.getlist(name) if name in lists else given[name] for name in given}
    try:
        return query.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise invalid(found, place=("query",)) from None


def _responses(
    scope: str | None,
    request: type[BaseModel] | None,
    answer: type[BaseModel] | None,
    status: int,
    media: str,
) -> dict[int | str, dict[str, Any]]:
    problems = dict(_PROBLEMS) if scope is not None else {503: _PROBLEMS[503]}
    if request is not None:
        problems |= _BODY_PROBLEMS
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
    return responses


def _extra(
    path: str,
    scope: str | None,
    query: type[BaseModel] | None,
    header: Mapping[str, object] | None,
    request: type[BaseModel] | None,
) -> dict[str, Any]:
    parameters: list[Mapping[str, object]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(path)
    ]
    if query is not None:
        parameters += _query_parameters(query)
    if header is not None:
        parameters.append(header)
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if scope is not None:
        extra["security"] = [{"key": [scope]}]
    if request is not None:
        schema = {"$ref": REF.format(model=request.__name__)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return extra


def _query_parameters(query: type[BaseModel]) -> list[Mapping[str, object]]:
    found: list[Mapping[str, object]] = []
    for name, schema in query.model_json_schema()["properties"].items():
        schema.pop("title", None)
        description = schema.pop("description", "")
        found.append(
            {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
        )
    return found


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
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `mak_…`, as bearer token."}
    }
    schemas = components.setdefault("schemas", {})
    schemas.update(made["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


_PARTS = (models, queue_models, suppression_models)


def _unseen() -> list[type[BaseModel]]:
    """Return the models that the framework does not meet by itself: bodies, and the problem."""
    found: list[type[BaseModel]] = [models.Problem]
    for one in (one for part in _PARTS for one in vars(part).values()):
        if isinstance(one, type) and issubclass(one, models.Asked) and one is not models.Asked:
            found.append(one)
    return found
