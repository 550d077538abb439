"""Webhook calls from a rule to a receiver: durable, tried again, given up, none in another's way."""

import asyncio
import base64
import json
import random
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.events.posting import Posted
from server.events.rule_calls import RuleCalls, content_of, kept_secret
from server.events.webhooks import Deliverer, wait_seconds
from storage import events, webhooks
from storage.records import Event
from tests.test_intake import CONTENT, Appliance, run
from tests.test_rules_acting import rule

URL = "https://hook.test/in"
HOOK = rule("webhook", url=URL)


class Receiver:
    """Stands for the other side: gives the answers in order, the last one for ever."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.stalls: set[str] = set()
        self.go = asyncio.Event()

    async def post(self, target: Any, *, call_id: str, timestamp: int, body: bytes, secret: bytes) -> Posted:
        assert timestamp and secret
        self.calls.append((target.origin, call_id, json.loads(body)))
        if target.host in self.stalls:
            await self.go.wait()
        status = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        return Posted(status, "" if status else "no answer")


@asynccontextmanager
async def delivering(appliance: Appliance, receiver: Receiver, **changes: Any):
    made = Deliverer(
        threads=appliance.threads,
        hub=appliance.threads.hub,
        clock=appliance.clock,
        poster=receiver,  # type: ignore[arg-type]  # the one call that is made
        secret=lambda: b"k" * 32,
        content_of=lambda call: content_of(appliance.threads, call),
        timeout_seconds=5.0,
        concurrency=changes.pop("concurrency", 16),
        dice=random.Random(1),
    )
    calls = RuleCalls(
        threads=appliance.threads, hub=appliance.threads.hub, clock=appliance.clock, expiry_hours=1
    )
    await made.start()
    await calls.start()
    try:
        yield made
    finally:
        await calls.stop()
        await made.stop()


def log(appliance: Appliance, *kinds: str) -> list[Event]:
    return appliance.store.database.read(lambda c: events.after(c, seq=0, kinds=kinds, limit=1000))


async def until(appliance: Appliance, kind: str, count: int = 1) -> list[Event]:
    async with asyncio.timeout(20):
        while len(found := await asyncio.to_thread(log, appliance, kind)) < count:
            await asyncio.sleep(0.01)
    return found


def waiting(appliance: Appliance) -> int:
    return appliance.store.database.read(webhooks.waiting)


def test_a_receiver_is_told_of_the_message_and_not_of_its_content(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(200)
        async with delivering(appliance, receiver):
            receipt = await appliance.receive(CONTENT)
            (told,) = await until(appliance, "webhook.delivered")
        ((origin, call_id, body),) = receiver.calls
        assert origin == "https://hook.test:443"
        assert body["type"] == "message.webhook"
        data = body["data"]
        assert data["message_id"] == receipt.message_ids[0] == told.message_id
        assert data["envelope"] == {
            "from": "ada@far.example",
            "to": ["one@ours.example"],
            "recipient_count": 1,
        }
        assert data["decision"]["rules"] == ["it"]
        assert "content" not in data
        assert "Good day" not in json.dumps(body)
        assert told.data["webhook"] == call_id
        assert waiting(appliance) == 0

    run(tmp_path, scenario, HOOK)


def test_the_content_goes_along_where_the_rule_asks(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(200)
        async with delivering(appliance, receiver):
            await appliance.receive(CONTENT)
            await until(appliance, "webhook.delivered")
        assert base64.b64decode(receiver.calls[0][2]["data"]["content"]) == CONTENT

    run(tmp_path, scenario, HOOK.replace('action = "webhook"', 'action = "webhook"\ncontent = true'))


def test_the_250_does_not_wait_and_a_crash_in_between_loses_nothing(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receipt = await appliance.receive(CONTENT)  # nobody delivers yet: the event is durable all the same
        assert log(appliance, "message.webhook")[0].message_id == receipt.message_ids[0]
        receiver = Receiver(200)
        receiver.stalls.add("hook.test")
        async with delivering(appliance, receiver):
            async with asyncio.timeout(20):
                while not receiver.calls:
                    await asyncio.sleep(0.01)
        # Cut in the middle of the call: it is made again, under the same id.
        assert waiting(appliance) == 1
        appliance.clock.advance(100)
        receiver.stalls.clear()
        async with delivering(appliance, receiver):
            await until(appliance, "webhook.delivered")
        assert [one[1] for one in receiver.calls] == [receiver.calls[0][1]] * 2

    run(tmp_path, scenario, HOOK)


def test_a_failing_receiver_is_called_again_and_given_up_in_the_end(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(0, 500, 302, 503)
        async with delivering(appliance, receiver) as deliverer:
            await appliance.receive(CONTENT)
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(log, appliance, "webhook.failed"):
                    appliance.clock.advance(130)
                    deliverer._wake.set()
                    await asyncio.sleep(0.02)
            (failed,) = await until(appliance, "webhook.failed")
        assert waiting(appliance) == 0
        assert len({call_id for _, call_id, _ in receiver.calls}) == 1
        assert failed.data["attempt"] == len(receiver.calls) > 4

    run(tmp_path, scenario, HOOK)


def test_a_receiver_that_is_gone_is_not_called_again(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(410)
        async with delivering(appliance, receiver):
            await appliance.receive(CONTENT)
            await until(appliance, "webhook.failed")
        assert (len(receiver.calls), waiting(appliance)) == (1, 0)

    run(tmp_path, scenario, HOOK)


def test_a_receiver_that_hangs_keeps_no_other_waiting(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(200)
        receiver.stalls.add("slow.test")
        for _ in range(12):
            await appliance.receive(CONTENT)
        async with delivering(appliance, receiver, concurrency=6):
            await until(appliance, "webhook.delivered", 12)
            slow = [one for one in receiver.calls if "slow" in one[0]]
            assert len(slow) == 4
            receiver.go.set()
            await until(appliance, "webhook.delivered", 24)

    slow = rule("webhook", name="slow", url="https://slow.test/")
    run(tmp_path, scenario, slow + HOOK)


def test_a_discarded_message_is_told_of_and_an_erased_one_is_not(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        receiver = Receiver(200)
        await appliance.receive(CONTENT)
        async with delivering(appliance, receiver):
            await until(appliance, "webhook.delivered")
        assert receiver.calls[0][2]["data"]["decision"]["action"] == "discard"

    run(tmp_path, scenario, HOOK + rule("discard", name="away"))


@pytest.mark.parametrize(
    "bad",
    ['url = "ftp://x.test/"', 'url = "https://u:p@x.test/"', 'url = "https://x.test/ü"', "", "url = 5"],
)
def test_a_rule_without_a_good_url_is_refused_when_read(tmp_path, bad):
    from policies.compile import PolicyError, compile_rules

    text = f'[[rule]]\nname = "it"\nstage = "message"\nwhen = "true"\naction = "webhook"\n{bad}\n'
    with pytest.raises(PolicyError) as found:
        compile_rules([("x.toml", text)])
    assert "url" in str(found.value)


def test_the_waits_double_up_to_two_hours():
    assert [wait_seconds(n, jitter=0) for n in (1, 2, 3, 12, 10**9)] == [5, 10, 20, 7200, 7200]
    assert wait_seconds(1, jitter=0.999) > 4


def test_the_appliances_own_secret_is_made_once_and_is_nobody_elses_to_read(tmp_path):
    path = tmp_path / "webhook.secret"
    first = kept_secret(path)
    assert kept_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("whsec_")
