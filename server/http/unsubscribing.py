"""The page and the POST behind List-Unsubscribe links (RFC 8058).

Owns them alone: a GET only shows a button, since programs that look at links follow them; the POST
unsubscribes and is answered without a redirect. No login, cookie or script: the signed link is all.
RFC 8058 3.2, RFC 2369 3.2.
"""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.http.problems import Problem
from server.unsubscribe import PATH, unsubscribe

if TYPE_CHECKING:
    from server.clock import Clock
    from server.return_tokens import ReturnTokens
    from server.return_tokens import Unsubscribing as Wish
    from server.threads import Threads

FORM_OCTETS = 4096
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title></head><body><main><h1>{title}</h1><p>{text}</p>{form}</main></body></html>
"""
_FORM = """<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">
<button>Unsubscribe</button></form>"""


class Unsubscribing:
    """The two answers under /unsubscribe/."""

    def __init__(self, *, threads: Threads, clock: Clock, tokens: ReturnTokens) -> None:
        self._threads = threads
        self._clock = clock
        self._tokens = tokens

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; they are no part of the API's schema."""
        for method, endpoint in (("GET", self.ask), ("POST", self.take)):
            app.add_api_route(
                PATH + "{link}",
                endpoint,
                methods=[method],
                response_class=Response,
                response_model=None,
                include_in_schema=False,
            )

    async def ask(self, link: str) -> Response:
        """Show what the button does; changes nothing."""
        wish = self._wish(link)
        text = f"No more mail from {wish.sender} will be sent to {wish.recipient}."
        return _page("Unsubscribe", text, form=_FORM)

    async def take(self, request: Request, link: str) -> Response:
        """Unsubscribe the reader that the link names (RFC 8058 3.2)."""
        wish = self._wish(link)
        if not _is_one_click(await _body(request)):
            raise Problem(400, "bad_request", "The form says List-Unsubscribe=One-Click (RFC 8058 3.1).")
        if not await self._threads.write(partial(unsubscribe, wish=wish, at=self._clock.now())):
            raise _gone()
        return _page("Unsubscribed", f"No more mail from {wish.sender} will be sent to {wish.recipient}.")

    def _wish(self, link: str) -> Wish:
        wish = self._tokens.wish(link)
        if wish is None:
            raise _gone()
        return wish


def _gone() -> Problem:
    return Problem(404, "not_found", "This link was not made here.")


def _is_one_click(body: bytes) -> bool:
    """Whether a body of either form type has the one field; neither type lets other words look like it."""
    return b"List-Unsubscribe" in body and b"One-Click" in body


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_OCTETS:
                raise Problem(413, "too_large", f"A form has {FORM_OCTETS} octets at most.")
    except ClientDisconnect:
        raise Problem(400, "bad_request", "The form did not come whole.") from None
    return body


def _page(title: str, text: str, *, form: str = "") -> Response:
    page = _PAGE.format(title=escape(title), text=escape(text), form=form)
    return Response(page, headers=_HEADERS, media_type="text/html; charset=utf-8")
