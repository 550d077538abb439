"""The route of TLS reports that other servers sent about an organization's domains.

Owns its models and the shape of a report in JSON. RFC 8460 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from starlette.responses import Response

from server.http import models
from server.http.access import Caller
from server.http.answers import answer, next_cursor, time_text
from server.http.models import Answer, Time
from server.http.problems import not_found
from server.mail.address import AddressSyntax, normalise_domain, parse_domain
from storage import accounts, tls_reports

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.http.openapi import Door
    from server.http.services import Services

ROWS = 200


class TlsRow(Answer):
    """Sessions of one kind, as a report of another server counts them."""

    policy_type: str = Field(description="`tlsa`, `sts` or `no-policy-found`, or the reporter's own word.")
    policy_domain: str
    result_type: str = Field(description="What failed, in the words of RFC 8460 4.3; empty for success.")
    sessions: int
    sending_ip: str
    receiving_host: str
    receiving_ip: str
    reason: str


class TlsReport(Answer):
    """A TLS report that another server sent about the domain."""

    id: str
    domain: str
    reporter: str
    report_id: str
    contact: str
    begin_at: Time
    end_at: Time
    received_at: Time
    successes: int
    failures: int
    authenticated: bool = Field(description="Whether the mail that brought it passed DMARC.")
    message_id: str = Field(description="That mail; empty where it came to another organization.")
    omitted_rows: int
    rows: list[TlsRow] = Field(description="Those with most sessions first, 200 at most.")


class TlsReportList(Answer):
    """A page of reports, newest first."""

    reports: list[TlsReport]
    next_cursor: str | None


class TlsReportRoutes:
    """Reports by domain."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the route."""
        door.add(
            "GET /domains/{name}/tls-reports",
            self.list_reports,
            scope="domain:admin",
            query=models.PageQuery,
            answer=TlsReportList,
            tag="Domains",
        )

    async def list_reports(self, caller: Caller, name: str, query: models.PageQuery) -> Response:
        """List the TLS reports that other servers sent about a domain, newest first.

        A report is its sender's word: `authenticated` says whether its mail proved who that is.
        """
        caller.require_unbound()
        try:
            wanted = normalise_domain(parse_domain(name.removesuffix("."), smtputf8=True))
        except (AddressSyntax, ValueError):
            raise not_found() from None

        def unit(connection: Connection) -> list[tls_reports.Report] | None:
            found = accounts.find_domain(connection, name=wanted)
            if found is None or found.organization_id != caller.organization_id:
                return None
            return tls_reports.reports(
                connection,
                organization_id=caller.organization_id,
                domain=wanted,
                before=query.cursor,
                limit=query.limit,
                with_rows=ROWS,
            )

        page = await self._services.threads.read(unit)
        if page is None:
            raise not_found()
        after = next_cursor(page, query.limit, page[-1].id) if page else None
        return answer({"reports": [_told(one) for one in page], "next_cursor": after})


def _told(one: tls_reports.Report) -> dict[str, object]:
    """Return TlsReport."""
    plain = (
        "id", "domain", "reporter", "report_id", "contact", "successes", "failures", "authenticated",
        "message_id", "omitted_rows",
    )  # fmt: skip
    told: dict[str, object] = {name: getattr(one, name) for name in plain}
    told |= {name: time_text(getattr(one, name)) for name in ("begin_at", "end_at", "received_at")}
    told["rows"] = [{name: getattr(row, name) for name in TlsRow.model_fields} for row in one.rows]
    return told
