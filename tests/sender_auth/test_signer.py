"""Our signatures: they verify with stock dkimpy and with ours, and cover what they should."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.imap.render import render
from server.mail import header
from server.refusal import Broken
from server.sender_auth import dkim_verify, signer
from server.sender_auth.dkim_tags import Key, signatures
from server.sender_auth.keys import ALGORITHMS, make_key
from server.sender_auth.signer import LIST_FIELDS, SIGNED_FIELDS, Signer
from server.threads import Hub, Threads
from storage import accounts
from storage.records import DkimKey
from storage.store import Store
from tests.databases import migrated
from tests.sender_auth.letters import AT, LETTER

DOMAIN = "example.com"
ADDED = b"X-Added: no\r\n"
KEYS = {algorithm: make_key(algorithm) for algorithm in ALGORITHMS}


@dataclass
class Stand:
    """A signer over a real store with one organization, its domain and a key of each algorithm."""

    signer: Signer
    threads: Threads
    organization_id: str
    texts: dict[str, str]  # by key name

    async def sign(
        self, content: bytes = LETTER, *, added: bytes = b"", organization_id: str | None = None
    ) -> bytes:
        return await self.signer.sign(
            domain=DOMAIN,
            organization_id=organization_id or self.organization_id,
            added=added,
            content=content,
            at=AT * 1_000_000,
        )

    async def add_key(self, algorithm: str, selector: str, *, pem: bytes | None = None) -> str:
        private, text = KEYS[algorithm]
        key = await self.threads.write(
            lambda c: accounts.add_dkim_key(
                c,
                organization_id=self.organization_id,
                domain=DOMAIN,
                selector=selector,
                algorithm=algorithm,
                private_pem=private if pem is None else pem,
                public_record=text,
                at=1,
            )
        )
        self.texts[f"{selector}._domainkey.{DOMAIN}"] = text
        return key.id


@asynccontextmanager
async def standing(directory: Path, *, algorithms: tuple[str, ...] = ALGORITHMS) -> AsyncIterator[Stand]:
    store = Store.open(
        directory=directory,
        database_url=migrated(directory / "mailagents.sqlite"),
        render=render,
        segment_octets=1 << 20,
        spool_threshold_octets=1 << 18,
    )
    threads = Threads(store, Hub())
    try:
        made = await threads.write(lambda c: accounts.add_organization(c, name="ours", at=1))
        await threads.write(
            lambda c: accounts.add_domain(c, organization_id=made.id, name=DOMAIN, at=1) and None
        )
        stand = Stand(Signer(threads), threads, made.id, {})
        for algorithm in algorithms:
            await stand.add_key(algorithm, algorithm.partition("-")[0])
        yield stand
    finally:
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(threads.close)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]  # every scenario is a coroutine function


def ours(content: bytes, texts: dict[str, str]) -> list[str]:
    head = content[: header.split(content)]
    fields = header.fields(head)
    keys = {name: Key((text.encode(),)) for name, text in texts.items()}
    found = dkim_verify.verify(content, fields, len(head), signatures(fields), keys, now=AT + 5)
    return [verdict.result for verdict in found]


STOCK = """
import dkim, json, sys
given = json.loads(sys.argv[1])
content = sys.stdin.buffer.read()
assert dkim.RSASSA_PKCS1_v1_5_verify.__module__ == "dkim.crypto"
look = lambda name, timeout=5: given["texts"].get(name.decode().rstrip("."), "").encode()
print(json.dumps([dkim.DKIM(content).verify(idx=index, dnsfunc=look) for index in range(given["count"])]))
"""


def stock(content: bytes, texts: dict[str, str], count: int = 2) -> list[bool]:
    """What dkimpy says of each signature, as it comes, in a process of its own."""
    given = json.dumps({"texts": texts, "count": count})
    done = subprocess.run(
        [sys.executable, "-c", STOCK, given], input=content, capture_output=True, check=True
    )
    answers: list[bool] = json.loads(done.stdout)
    return answers


LETTERS = {
    "usual": LETTER,
    "no body": LETTER.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "blank body": LETTER.partition(b"\r\n\r\n")[0] + b"\r\n\r\n\r\n \r\n\r\n",
    "no line end": LETTER + b"the end \t ",
    "folded": LETTER.replace(b"An  invitation", b"An\r\n\tinvitation \t to\r\n  all "),
    "many recipients": LETTER.replace(
        b"To: ", b"To: x@example.net\r\nTo: y@example.net\r\nCc: z@a.example\r\nTo: "
    ),
    "mime": LETTER.replace(
        b"\r\n\r\n",
        b"\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 8bit\r\nList-Unsubscribe: <https://example.com/u>\r\n"
        b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\nbl\xc3\xa5 ",
        1,
    ),
}


@pytest.mark.parametrize("name", LETTERS)
def test_signatures_verify_with_stock_dkimpy_and_with_ours(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            fields = await stand.sign(LETTERS[name], added=ADDED)
            content = fields + ADDED + LETTERS[name]
            assert ours(content, stand.texts) == ["pass", "pass"]
            assert stock(content, stand.texts) == [True, True]

    run(scenario)


def test_fields_are_folded_and_say_what_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            fields = await stand.sign()
            assert fields.endswith(b"\r\n") and fields.count(b"DKIM-Signature: ") == 2
            assert max(map(len, fields.split(b"\r\n"))) <= 78
            first = signatures(header.fields(fields))[0]
            assert (first.domain, first.selector, first.signed_at) == (DOMAIN, "rsa", AT)
            assert first.is_header_relaxed and first.is_body_relaxed and first.limit is None
            assert first.expires_at is None

    run(scenario)


def test_every_protected_field_is_signed_once_more_than_it_occurs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path, algorithms=("ed25519-sha256",)) as stand:
            fields = await stand.sign(LETTERS["many recipients"])
            [signature] = signatures(header.fields(fields))
            assert signature.names.count(b"to") == 4
            assert signature.names.count(b"from") == 2
            assert set(signature.names) == {name.lower() for name in set(SIGNED_FIELDS) - LIST_FIELDS}

    run(scenario)


@pytest.mark.parametrize("names", [("List-Unsubscribe",), ("List-Unsubscribe", "List-Unsubscribe-Post")])
def test_fields_of_a_list_are_signed_where_there_are_any(names: tuple[str, ...], tmp_path: Path) -> None:
    given = "".join(f"{name}: <https://example.com/u>\r\n" for name in names).encode()

    async def scenario() -> None:
        async with standing(tmp_path, algorithms=("ed25519-sha256",)) as stand:
            [signature] = signatures(header.fields(await stand.sign(given + LETTER)))
            assert signature.names.count(b"list-unsubscribe") == 2
            assert signature.names.count(b"list-unsubscribe-post") == len(names)

    run(scenario)


def test_a_list_may_add_its_own_fields(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            content = await stand.sign() + LETTER
            added = b"List-Unsubscribe: <https://list.example/u>\r\nList-Id: <l.list.example>\r\n"
            assert ours(added + content, stand.texts) == ["pass", "pass"]
            assert stock(added + content, stand.texts) == [True, True]

    run(scenario)


@pytest.mark.parametrize("name", [name.decode() for name in SIGNED_FIELDS])
def test_no_protected_field_can_be_added(name: str, tmp_path: Path) -> None:
    listed = b"List-Unsubscribe: <https://example.com/u>\r\n" if name.startswith("List-") else b""

    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            content = await stand.sign(listed + LETTER) + listed + LETTER
            assert ours(content, stand.texts) == ["pass", "pass"]
            field = name.encode() + b": <evil@example.net>\r\n"
            assert "pass" not in ours(field + content, stand.texts)
            if name in ("From", "Subject"):
                assert stock(field + content, stand.texts) == [False, False]
            at_the_end = content.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n", 1)
            assert "pass" not in ours(at_the_end, stand.texts)

    run(scenario)


@pytest.mark.parametrize(
    ("old", "new"), [(b"Come and see", b"Go"), (b"Subject: An", b"Subject: No"), (b"ann@", b"eve@")]
)
def test_tampering_is_noticed_by_both(old: bytes, new: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            content = (await stand.sign() + LETTER).replace(old, new)
            assert ours(content, stand.texts) == ["fail", "fail"]
            # dkimpy raises for a body that does not fit, so only headers go to it.
            if b"Go" not in content:
                assert stock(content, stand.texts) == [False, False]

    run(scenario)


def test_white_space_that_relaxed_form_forgives_breaks_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            content = await stand.sign() + LETTER.replace(b"An  inv", b"An \t inv").replace(
                b"see. ", b"see.\t"
            )
            assert ours(content + b"\r\n\r\n", stand.texts) == ["pass", "pass"]

    run(scenario)


def test_spooled_content_is_signed_as_the_same_octets(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            content = LETTER + b"a line \t of  text \r\n" * 80_000 + b"\r\n" * 700_000 + b"end"
            writer = stand.threads.store.spool()
            writer.write(content)
            spooled = writer.finish()
            fields = await stand.signer.sign(
                domain=DOMAIN,
                organization_id=stand.organization_id,
                added=ADDED,
                content=spooled,
                at=AT * 1_000_000,
            )
            assert ours(fields + ADDED + content, stand.texts) == ["pass", "pass"]

    run(scenario)


def test_absent_spooled_content_is_our_fault(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            writer = stand.threads.store.spool()
            writer.write(LETTER)
            spooled = writer.finish()
            stand.threads.store.read_spooled(spooled).unlink()
            with pytest.raises(Broken):
                await stand.signer.sign(
                    domain=DOMAIN, organization_id=stand.organization_id, added=b"", content=spooled, at=1
                )

    run(scenario)


def test_domain_without_keys_and_foreign_organization_sign_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            assert await stand.sign(organization_id="org_other") == b""
        async with standing(tmp_path / "keyless", algorithms=()) as stand:
            assert await stand.sign() == b""

    (tmp_path / "keyless").mkdir()
    run(scenario)


def test_changed_keys_are_used_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path, algorithms=()) as stand:
            assert await stand.sign() == b""
            key_id = await stand.add_key("ed25519-sha256", "first")
            assert (await stand.sign()).count(b"s=first") == 1
            await stand.add_key("ed25519-sha256", "second")
            assert (await stand.sign()).count(b"s=second") == 1
            organization_id = stand.organization_id
            await stand.threads.write(
                lambda c: accounts.retire_dkim_key(c, organization_id=organization_id, key_id=key_id)
            )
            fields = await stand.sign()
            assert b"s=first" not in fields and b"s=second" in fields

    run(scenario)


def test_keys_are_read_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = signer._private

    def counted(row: DkimKey) -> signer.PrivateKey:
        parsed.append(row.selector)
        return real(row)

    monkeypatch.setattr(signer, "_private", counted)

    async def scenario() -> None:
        async with standing(tmp_path) as stand:
            for _ in range(5):
                await stand.sign()
            assert sorted(parsed) == ["ed25519", "rsa"]

    run(scenario)


@pytest.mark.parametrize("pem", [b"not a key", KEYS["ed25519-sha256"][0]])
def test_unreadable_key_is_our_fault_and_never_an_unsigned_message(pem: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path, algorithms=()) as stand:
            await stand.add_key("rsa-sha256", "bad", pem=pem)
            with pytest.raises(Broken):
                await stand.sign()

    run(scenario)


def test_more_instances_of_a_field_than_are_signed_stay_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(tmp_path, algorithms=("ed25519-sha256",)) as stand:
            content = b"Cc: a@example.net\r\n" * 5000 + LETTER
            fields = await stand.sign(content)
            assert len(fields) < 4000
            assert stock(fields + content, stand.texts, 1) == [True]

    run(scenario)


def test_made_keys_are_of_the_promised_kind() -> None:
    for algorithm, (pem, text) in KEYS.items():
        kind = algorithm.partition("-")[0]
        assert text.startswith(f"v=DKIM1; k={kind}; p=")
        assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(ValueError, match="rsa-sha1"):
        make_key("rsa-sha1")
