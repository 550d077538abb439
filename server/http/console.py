"""The operator's console: plain pages about messages and what happened to them.

Owns signing in with an operator's key, the session's cookie, the check that a
form came from our own page, and the headers that keep pages to themselves.
Pages are made from views in pages.py; they run no script at all.
RFC 6265 (cookies); CSP Level 3; Fetch Metadata (Sec-Fetch-Site).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from server.http import pages
from server.http.access import OPERATOR, Access
from server.http.problems import Problem, of_refusal
from server.http.sessions import Session, Sessions, is_form_of
from server.refusal import Refusal
from storage import accounts

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.http.services import Services
    from storage.records import ApiKey

PLACE = "/console"
COOKIE = "mailagents_console"
FORM_OCTETS = 4096
_HERE = Path(__file__).parent
_STATIC = {
    "console.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Console:
    """The pages under /console."""

    def __init__(self, *, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._sessions = Sessions()
        self._static = {name: (_HERE / "static" / name).read_bytes() for name in _STATIC}
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def add_to(self, app: FastAPI) -> None:
        """Add the pages; they are no part of the API's schema."""
        for method, path, endpoint in (
            ("GET", "", self.overview),
            ("GET", "/sign-in", self.sign_in_page),
            ("POST", "/sign-in", self.sign_in),
            ("POST", "/sign-out", self.sign_out),
            ("GET", "/messages", self.messages),
            ("GET", "/messages/{message_id}", self.message),
            ("GET", "/dmarc", self.dmarc),
            ("GET", "/static/{name}", self.static),
        ):
            app.add_api_route(
                PLACE + path,
                endpoint,
                methods=[method],
                response_class=Response,
                response_model=None,
                include_in_schema=False,
            )

    async def overview(self, request: Request) -> Response:
        """Show how much there is, what waits, what happened last."""
        return await self._show(request, "overview.html", lambda c, _key: pages.overview(c))

    async def messages(self, request: Request) -> Response:
        """Show messages, newest first."""
        before = request.query_params.get("before", "")[:64] or None
        return await self._show(
            request, "messages.html", lambda c, key: pages.message_list(c, before_id=before, reader=key)
        )

    async def message(self, request: Request, message_id: str) -> Response:
        """Show one message's facts, timeline and deliveries."""
        return await self._show(
            request,
            "message.html",
            lambda c, key: pages.message(c, message_id=message_id, reader=key),
        )

    async def dmarc(self, request: Request) -> Response:
        """Show what others report about mail in the name of domains here."""
        return await self._show(request, "dmarc.html", lambda c, _key: pages.dmarc_list(c))

    async def static(self, name: str) -> Response:
        """Give the style sheet or the icon."""
        if name not in _STATIC:
            raise Problem(404, "not_found", "There is nothing at this address.")
        headers = {"Cache-Control": "public, max-age=3600"}
        return Response(self._static[name], headers=headers, media_type=_STATIC[name])

    async def sign_in_page(self, request: Request) -> Response:
        """Show the form that asks for a key."""
        return await self._page("sign_in.html", {"problem": ""})

    async def sign_in(self, request: Request) -> Response:
        """Begin a session for an operator's key."""
        if not _is_from_here(request):
            return await self._sign_in_again("The form did not come from this page.", 403)
        form = await _read_form(request)
        peer = request.client.host if request.client else ""
        try:
            caller = await self._access.check(form.get("key", "").strip(), peer=peer)
        except Refusal as refusal:
            return await self._sign_in_again(refusal.public, of_refusal(refusal).status_code)
        except Problem as problem:
            return await self._sign_in_again(problem.detail, problem.status_code)
        if not caller.is_operator:
            return await self._sign_in_again("This key lacks the scope operator.", 403)
        now = self._services.clock.now()
        self._access.note_use(caller.key_id, at=now)
        token = self._sessions.open(organization_id=caller.organization_id, key_id=caller.key_id, at=now)
        answer = RedirectResponse(PLACE, 303, _PAGE_HEADERS)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, token, path=PLACE, secure=secure, httponly=True, samesite="strict")
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        session = self._session(request)
        form = await _read_form(request)
        if session is None:
            return RedirectResponse(f"{PLACE}/sign-in", 303, _PAGE_HEADERS)
        if not _is_from_here(request) or not is_form_of(session, form.get("mark", "")):
            return await self._problem(403, "The form did not come from this page.", session)
        self._sessions.close(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(f"{PLACE}/sign-in", 303, _PAGE_HEADERS)
        answer.delete_cookie(COOKIE, path=PLACE, httponly=True, samesite="strict")
        return answer

    def _session(self, request: Request) -> Session | None:
        token = request.cookies.get(COOKIE, "")
        return self._sessions.find(token, at=self._services.clock.now()) if token else None

    async def _show(
        self,
        request: Request,
        template: str,
        view: Callable[[Connection, ApiKey], Mapping[str, object] | None],
    ) -> Response:
        """Show a page to a session whose key is still in force; anybody else is asked to sign in."""
        session = self._session(request)
        if session is None:
            return RedirectResponse(f"{PLACE}/sign-in", 303, _PAGE_HEADERS)
        now = self._services.clock.now()

        def unit(connection: Connection) -> tuple[ApiKey | None, Mapping[str, object] | None]:
            key = accounts.api_key(connection, organization_id=session.organization_id, key_id=session.key_id)
            if key is None or not _is_in_force(key, now):
                return None, None
            return key, view(connection, key)

        key, shown = await self._services.threads.read(unit)
        if key is None:
            self._sessions.close(request.cookies.get(COOKIE, ""))
            return RedirectResponse(f"{PLACE}/sign-in", 303, _PAGE_HEADERS)
        if shown is None:
            return await self._problem(404, "There is nothing of that id.", session)
        return await self._page(template, {**shown, "mark": session.form_mark, "key": key.prefix})

    async def _sign_in_again(self, problem: str, status: int) -> Response:
        return await self._page("sign_in.html", {"problem": problem}, status=status)

    async def _problem(self, status: int, problem: str, session: Session) -> Response:
        view = {"problem": problem, "mark": session.form_mark, "key": ""}
        return await self._page("problem.html", view, status=status)

    async def _page(self, template: str, view: Mapping[str, Any], *, status: int = 200) -> Response:
        found = self._templates.get_template(template)
        html = await self._services.threads.compute(
            found.render, hostname=self._services.settings.server.hostname, **view
        )
        body = html.encode("utf-8", "replace")
        return Response(body, status, dict(_PAGE_HEADERS), "text/html; charset=utf-8")


def _is_in_force(key: ApiKey, now: int) -> bool:
    expired = key.expires_at is not None and key.expires_at <= now
    return key.revoked_at is None and not expired and OPERATOR in key.scopes


def _is_from_here(request: Request) -> bool:
    """Return whether a form was sent by a page of ours, by what browsers say of it."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urllib.parse.urlsplit(origin).netloc == request.headers.get("host", "")


async def _read_form(request: Request) -> dict[str, str]:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_OCTETS:
                raise Problem(413, "too_large", "The form is too large.")
    except ClientDisconnect:
        raise Problem(400, "bad_request", "The body ended early.") from None
    text = body.decode("utf-8", "replace")
    try:
        return dict(urllib.parse.parse_qsl(text, max_num_fields=20))
    except ValueError:
        raise Problem(400, "bad_request", "The form has too many fields.") from None
