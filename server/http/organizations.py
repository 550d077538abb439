"""Routes for organizations, domains and keys.

Owns who may create what: organizations and domains an operator alone, since a
domain added here takes all mail for its name on this appliance and nobody has
proved yet whose it is; keys whoever holds at least what the new key gets.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.http import answers, models
from server.http.access import OPERATOR, Caller
from server.http.answers import answer, next_cursor
from server.http.openapi import Door
from server.http.problems import Problem, not_found
from server.http.services import Services, known_id, write_audit
from server.login import new_key
from server.mail.address import AddressSyntax, normalise_domain, parse_domain
from server.sender_auth import zone
from server.sender_auth.keys import ALGORITHMS, make_key, selector_of
from server.transport.publishing import advice, read_published
from storage import accounts, dkim, dmarc
from storage.records import ApiKey, Organization

if TYPE_CHECKING:
    from sqlalchemy import Connection

DMARC_ROWS = 200


class OrganizationRoutes:
    """Organizations, domains, keys."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "POST /organizations",
            self.add,
            scope="operator",
            request=models.OrganizationRequest,
            answer=models.Organization,
            status=201,
            tag="Organizations",
        )
        door.add(
            "GET /organizations",
            self.list_all,
            scope="org:admin",
            query=models.PageQuery,
            answer=models.OrganizationList,
            tag="Organizations",
        )
        door.add(
            "POST /organizations/{organization_id}/keys",
            self.add_key_for,
            scope="operator",
            request=models.KeyRequest,
            answer=models.KeySecret,
            status=201,
            tag="Organizations",
        )
        door.add(
            "POST /domains",
            self.add_domain,
            scope="operator",
            request=models.DomainRequest,
            answer=models.DomainRecords,
            status=201,
            tag="Domains",
        )
        door.add(
            "GET /domains", self.list_domains, scope="domain:admin", answer=models.DomainList, tag="Domains"
        )
        door.add(
            "GET /domains/{name}",
            self.get_domain,
            scope="domain:admin",
            answer=models.DomainRecords,
            tag="Domains",
        )
        door.add(
            "GET /domains/{name}/dmarc-reports",
            self.list_dmarc_reports,
            scope="domain:admin",
            query=models.PageQuery,
            answer=models.DmarcReportList,
            tag="Domains",
        )
        door.add(
            "POST /keys",
            self.add_key,
            scope="org:admin",
            request=models.KeyRequest,
            answer=models.KeySecret,
            status=201,
            tag="Keys",
        )
        door.add(
            "GET /keys",
            self.list_keys,
            scope="org:admin",
            query=models.PageQuery,
            answer=models.KeyList,
            tag="Keys",
        )
        door.add("DELETE /keys/{key_id}", self.revoke_key, scope="org:admin", status=204, tag="Keys")

    async def add(self, caller: Caller, request: Request) -> Response:
        """Create an organization.

        Its first key is made with `POST /v1/organizations/{organization_id}/keys`.
        """
        asked = await self._services.bodies.read(request, models.OrganizationRequest)
        now = self._services.clock.now()

        def unit(connection: Connection) -> Organization:
            made = accounts.add_organization(connection, name=asked.name, at=now)
            write_audit(
                connection,
                caller,
                action="organization.add",
                thing=made.id,
                at=now,
                organization_id=made.id,
                name=asked.name,
            )
            return made

        made = await self._services.threads.write(unit)
        return answer(answers.organization(made), status=201)

    async def list_all(self, caller: Caller, query: models.PageQuery) -> Response:
        """List organizations: an operator sees all, another key its own."""
        caller.require_unbound()

        def unit(connection: Connection) -> list[Organization]:
            if caller.is_operator:
                return accounts.organizations(connection, after=query.cursor, limit=query.limit)
            own = accounts.organization(connection, organization_id=caller.organization_id)
            return [] if own is None else [own]

        page = await self._services.threads.read(unit)
        after = next_cursor(page, query.limit, page[-1].id) if page and caller.is_operator else None
        return answer({"organizations": [answers.organization(one) for one in page], "next_cursor": after})

    async def add_domain(self, caller: Caller, request: Request) -> Response:
        """Add a mail domain, make its DKIM keys, and say what to publish in DNS.

        Needs an operator: from now on all mail to the domain that passes this appliance stays here.
        """
        asked = await self._services.bodies.read(request, models.DomainRequest)
        owner = known_id(asked.organization_id or caller.organization_id)
        await self._require_organization(owner)
        name = domain_name(asked.name)
        keys = [(one, *await self._services.threads.compute(make_key, one)) for one in ALGORITHMS]
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            made = accounts.add_domain(connection, organization_id=owner, name=name, at=now)
            for algorithm, pem, record in keys:
                accounts.add_dkim_key(
                    connection,
                    organization_id=owner,
                    domain=name,
                    selector=selector_of(algorithm, now),
                    algorithm=algorithm,
                    private_pem=pem,
                    public_record=record,
                    at=now,
                )
            write_audit(
                connection,
                caller,
                action="domain.add",
                thing=made.id,
                at=now,
                organization_id=owner,
                name=name,
            )

        await self._services.threads.write(unit)
        return answer(await self._domain(name, owner), status=201)

    async def list_domains(self, caller: Caller) -> Response:
        """List the organization's domains."""
        caller.require_unbound()
        found = await self._services.threads.read(
            lambda c: accounts.domains(c, organization_id=caller.organization_id)
        )
        return answer({"domains": [answers.domain(one) for one in found]})

    async def get_domain(self, caller: Caller, name: str) -> Response:
        """Show a domain and the DNS records to publish for it."""
        caller.require_unbound()
        try:
            wanted = domain_name(name)
        except Problem:
            raise not_found() from None
        return answer(await self._domain(wanted, caller.organization_id))

    async def list_dmarc_reports(self, caller: Caller, name: str, query: models.PageQuery) -> Response:
        """List the DMARC aggregate reports that other servers sent about a domain, newest first.

        A report is its sender's word: `authenticated` says whether its mail proved who that is.
        """
        caller.require_unbound()
        try:
            wanted = domain_name(name)
        except Problem:
            raise not_found() from None

        def unit(connection: Connection) -> list[dmarc.Report] | None:
            found = accounts.find_domain(connection, name=wanted)
            if found is None or found.organization_id != caller.organization_id:
                return None
            return dmarc.reports(
                connection,
                organization_id=caller.organization_id,
                domain=wanted,
                before=query.cursor,
                limit=query.limit,
                with_rows=DMARC_ROWS,
            )

        page = await self._services.threads.read(unit)
        if page is None:
            raise not_found()
        after = next_cursor(page, query.limit, page[-1].id) if page else None
        return answer({"reports": [answers.dmarc_report(one) for one in page], "next_cursor": after})

    async def add_key_for(self, caller: Caller, organization_id: str, request: Request) -> Response:
        """Create a key for an organization: how an operator hands one over. The secret is shown this once."""
        asked = await self._services.bodies.read(request, models.KeyRequest)
        if OPERATOR in asked.scopes:
            raise Problem(422, "invalid", "An operator's key is made with POST /v1/keys.")
        await self._require_organization(known_id(organization_id))
        return await self._make_key(caller, asked, organization_id)

    async def add_key(self, caller: Caller, request: Request) -> Response:
        """Create a key with at most the scopes of the key that asks. The secret is shown this once."""
        caller.require_unbound()
        asked = await self._services.bodies.read(request, models.KeyRequest)
        caller.require_held(frozenset(asked.scopes))
        if OPERATOR in asked.scopes and asked.inbox_id is not None:
            raise Problem(422, "invalid", "An operator's key is not bound to an inbox.")
        return await self._make_key(caller, asked, caller.organization_id)

    async def list_keys(self, caller: Caller, query: models.PageQuery) -> Response:
        """List the organization's keys, revoked ones too, without their secrets."""
        caller.require_unbound()
        page = await self._services.threads.read(
            lambda c: accounts.api_keys(
                c, organization_id=caller.organization_id, after=query.cursor, limit=query.limit
            )
        )
        after = next_cursor(page, query.limit, page[-1].id) if page else None
        return answer({"keys": [answers.key(one) for one in page], "next_cursor": after})

    async def revoke_key(self, caller: Caller, key_id: str) -> Response:
        """Revoke a key; it stops working at once."""
        caller.require_unbound()
        known_id(key_id)
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            accounts.revoke_api_key(connection, organization_id=caller.organization_id, key_id=key_id, at=now)
            write_audit(connection, caller, action="key.revoke", thing=key_id, at=now)

        await self._services.threads.write(unit)
        return Response(status_code=204)

    async def _make_key(self, caller: Caller, asked: models.KeyRequest, owner: str) -> Response:
        now = self._services.clock.now()
        expires_at = expiry(asked.expires_at, now)
        inbox_id = None if asked.inbox_id is None else known_id(asked.inbox_id)
        secret, prefix, digest = new_key()
        scopes = frozenset[str](asked.scopes)

        def unit(connection: Connection) -> ApiKey:
            made = accounts.add_api_key(
                connection,
                organization_id=owner,
                mailbox_id=inbox_id,
                name=asked.name,
                prefix=prefix,
                key_hash=digest,
                scopes=scopes,
                expires_at=expires_at,
                at=now,
            )
            write_audit(
                connection,
                caller,
                action="key.add",
                thing=made.id,
                at=now,
                organization_id=owner,
                scopes=sorted(scopes),
            )
            return made

        made = await self._services.threads.write(unit)
        return answer({**answers.key(made), "key": secret}, status=201, headers={"Cache-Control": "no-store"})

    async def _require_organization(self, organization_id: str) -> None:
        found = await self._services.threads.read(
            lambda c: accounts.organization(c, organization_id=organization_id)
        )
        if found is None:
            raise not_found()

    async def _domain(self, name: str, owner: str) -> dict[str, object]:
        found, keys = await self._services.threads.read(
            lambda c: (accounts.find_domain(c, name=name), dkim.keys(c, domain=name))
        )
        if found is None or found.organization_id != owner:
            raise not_found()
        settings = self._services.settings
        told = zone.records(
            name,
            hostname=settings.server.hostname,
            keys=keys,
            report_address=settings.dmarc.report_address,
        )
        published = await self._services.threads.run(read_published, settings)
        records = [*map(asdict, told), *map(asdict, advice(name, published))]
        return {**answers.domain(found), "records": records}


def expiry(text: str | None, now: int) -> int | None:
    """Return a request's expiry as microseconds, None for never; Problem 422."""
    if text is None:
        return None
    try:
        expires_at = answers.parse_time(text)
    except (ValueError, OverflowError):
        raise Problem(422, "invalid_time", "A time is written as RFC 3339, 2026-01-31T09:30:00Z.") from None
    if expires_at <= now:
        raise Problem(422, "invalid_time", "The expiry must lie in the future.")
    return expires_at


def domain_name(text: str) -> str:
    """Return a mail domain in normal form; Problem 422."""
    try:
        name = normalise_domain(parse_domain(text.removesuffix("."), smtputf8=True))
    except (AddressSyntax, ValueError):
        raise Problem(422, "invalid_domain", "That is no domain name.") from None
    if name.startswith("[") or "." not in name:
        raise Problem(422, "invalid_domain", "A mail domain is a name with a dot in it.")
    return name
