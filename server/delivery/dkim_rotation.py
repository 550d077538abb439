"""The rotation of DKIM keys as the daemon runs it: asks the DNS, switches, retires, tells the operator.

Owns the turns and the mail to a domain's postmaster, each once; what is next is decided in
sender_auth/rotation, and storage/dkim makes each step durable. Whatever is killed goes on where
it was. Of several processes one at a time may. Decision 034.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from server.arrival import Arrival
from server.delivery.rotation_letter import at_of, letter, step_of
from server.dns import DnsFailure, DnsTemporary
from server.refusal import Broken, Refusal
from server.sender_auth import rotation
from server.sender_auth.keys import ALGORITHMS, make_key, selector_of
from server.sender_auth.rotation import Act, Pace
from server.turns import Turns
from storage import dkim, ids
from storage.errors import Conflict, Missing
from storage.records import DkimKey, Envelope, Peer, Recipient, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.dns import Answer, Resolver
    from server.intake import Intake
    from server.threads import Threads

TURN_SECONDS = 60.0
PAGE = 200
CONCURRENCY = 20
# Making a key takes a tenth of a second of a processor, which all that is signed needs too.
BEGINS_PER_TURN = 20
SECOND = 1_000_000

log = structlog.get_logger("dkim")


class DkimRotation:
    """Brings the keys of all domains from step to step."""

    def __init__(
        self,
        *,
        threads: Threads,
        intake: Intake,
        resolver: Resolver,
        clock: Clock,
        pace: Pace,
        hostname: str,
    ) -> None:
        self._threads = threads
        self._intake = intake
        self._resolver = resolver
        self._clock = clock
        self._pace = pace
        self._hostname = hostname
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._begins = 0
        self._is_stopping = False
        self._lookups: set[asyncio.Future[Answer]] = set()
        self._turns = Turns("rotation of DKIM keys", self.turn, seconds=min(TURN_SECONDS, pace.look_seconds))

    async def start(self) -> None:
        """Begin to look, at once."""
        self._turns.start()

    async def stop(self) -> None:
        """End when the domains under way are done; no answer is waited for any more."""
        self._is_stopping = True
        for lookup in tuple(self._lookups):
            lookup.cancel()
        await self._turns.stop()

    async def turn(self) -> None:
        """Look after all domains with a key that is due; raises the first of their failures."""
        self._begins = 0
        while not self._is_stopping:
            now = self._clock.now()
            found = await self._threads.read(partial(dkim.due, at=now, limit=PAGE))
            looking = [self._look_after(owner, domain) for owner, domain in found]
            for failure in await asyncio.gather(*looking, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure
            if len(found) < PAGE:
                return

    async def _look_after(self, owner: str, domain: str) -> None:
        async with self._slots:
            if self._is_stopping:
                return
            try:
                await self._act(owner, domain)
            except Missing:
                log.warning("domain is gone", domain=domain)
                await self._put_off(owner, domain)
            await self._tell(owner, domain)

    async def _act(self, owner: str, domain: str) -> None:
        now = self._clock.now()
        known = await self._threads.read(partial(dkim.keys, domain=domain, organization_id=owner))
        looked_at = [key for key in known if rotation.needs_look(key, now=now, pace=self._pace)]
        looks = await asyncio.gather(*map(self._look, looked_at))
        seen = {key.id: one for key, one in zip(looked_at, looks, strict=True)}
        act, keys = await self._threads.write(partial(self._step, owner, domain, seen))
        was_seen = {key.id for key in known if key.seen_at is not None}
        for key in keys:
            if key.state == "active" and key.id in was_seen and key.seen_at is None:
                log.warning("record of a key that signs is gone", domain=domain, selector=key.selector)
        if act is Act.SWITCH:
            log.info("new keys sign", domain=domain)
        elif act is Act.BEGIN:
            await self._begin(owner, domain)
        over = rotation.retirable(keys, now=self._clock.now(), pace=self._pace)
        if over:
            await self._retire(owner, domain, over)

    async def _look(self, key: DkimKey) -> dkim.Look:
        name = f"{key.selector}._domainkey.{key.domain}"
        lookup = asyncio.ensure_future(self._resolver.resolve(name, "TXT"))
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)
        try:
            answer = await lookup
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
            return dkim.Look("unknown")
        except DnsTemporary:
            return dkim.Look("unknown")
        except DnsFailure:
            return dkim.Look("missing")
        return dkim.Look(rotation.judge(key, answer.records), answer.ttl)

    def _step(
        self, owner: str, domain: str, seen: dict[str, dkim.Look], connection: Connection
    ) -> tuple[Act, list[DkimKey]]:
        """Note what was seen, switch where that is proved, and say when to look again."""
        now = self._clock.now()
        keys = dkim.look(connection, organization_id=owner, domain=domain, seen=seen, at=now)
        made_at = dkim.newest_at(connection, organization_id=owner, domain=domain)
        act = rotation.next_act(keys, now=now, pace=self._pace, made_at=made_at)
        if act is Act.SWITCH:
            dkim.switch(connection, organization_id=owner, domain=domain, at=now)
            keys = dkim.keys(connection, domain=domain, organization_id=owner)
        due = {key.id: rotation.due_at(key, now=now, pace=self._pace) for key in keys}
        dkim.set_due(connection, due_at=due)
        return act, keys

    async def _retire(self, owner: str, domain: str, over: Sequence[DkimKey]) -> None:
        newest = max(key.changed_at for key in over)
        if await self._threads.read(partial(dkim.is_mail_waiting, organization_id=owner, before=newest)):
            log.info("old keys wait for mail in the queue", domain=domain)
            return
        chosen = [key.id for key in over]
        await self._threads.write(
            partial(dkim.retire, organization_id=owner, domain=domain, key_ids=chosen, at=self._clock.now())
        )
        log.info("old keys retired", domain=domain)

    async def _begin(self, owner: str, domain: str) -> None:
        if self._begins >= BEGINS_PER_TURN:
            return  # in a later turn
        self._begins += 1
        now = self._clock.now()
        made = []
        for algorithm in ALGORITHMS:
            pem, record = await self._threads.compute(make_key, algorithm)
            made.append(dkim.NewKey(selector_of(algorithm, now), algorithm, pem, record))
        unit = partial(
            dkim.begin,
            organization_id=owner,
            domain=domain,
            made=made,
            actor=dkim.DAEMON,
            is_told=False,
            at=now,
        )
        try:
            await self._threads.write(unit)
        except Conflict:
            return  # somebody was quicker
        log.info("new keys made, their records wait for publication", domain=domain)

    async def _put_off(self, owner: str, domain: str) -> None:
        later = self._clock.now() + rotation.CARE_SECONDS * SECOND
        keys = await self._threads.read(partial(dkim.keys, domain=domain, organization_id=owner))
        due = {key.id: later for key in keys}
        await self._threads.write(partial(dkim.set_due, due_at=due))

    async def _tell(self, owner: str, domain: str) -> None:
        """Write to the domain's postmaster what happened and what is to be done, once for each step."""
        keys = await self._threads.read(partial(dkim.untold, domain=domain, organization_id=owner))
        for step in dict.fromkeys(map(step_of, keys)):
            about = [key for key in keys if step_of(key) == step]
            if await self._is_told(owner, domain, about):
                await self._threads.write(partial(dkim.told, key_ids=[key.id for key in about]))
            else:
                later = self._clock.now() + self._pace.look_seconds * SECOND
                due = {key.id: later for key in about}
                await self._threads.write(partial(dkim.set_due, due_at=due))

    async def _is_told(self, owner: str, domain: str, about: Sequence[DkimKey]) -> bool:
        """Send a letter; False where that has to be tried again."""
        try:
            await self._send(owner, domain, about)
        except Refusal as refusal:
            log.warning("operator not told", domain=domain, reason=refusal.public)
            return not refusal.temporary
        except Broken as error:
            log.error("operator not told", domain=domain, reason=str(error))
            return False
        return True

    async def _send(self, owner: str, domain: str, about: Sequence[DkimKey]) -> None:
        newest = max(at_of(key) for key in about)
        key = " ".join([domain, step_of(about[0]), *(one.id for one in about)]).encode()
        # The same for the same step: what is told again after a crash is not sent again.
        message_id = ids.derived("msg", key, at=newest)
        content = letter(domain, about, hostname=self._hostname, message_id=message_id, at=self._clock.now())
        recipient = Recipient(f"postmaster@{domain}", frozenset({"NEVER"}))
        await self._intake.accept(
            Arrival(
                source=Source.NOTICE,
                peer=Peer(address="", helo=self._hostname),
                envelope=Envelope(reverse_path=None, recipients=(recipient,)),
                content=content,
                message_id=message_id,
                organization_id=owner,
            )
        )
