"""10,000 messages as an inbox holds them: 72 MB, the same every time.

Most are short notices in text and HTML, some plain, some with an attachment; in
threads of five; headers of the usual length, a tenth of them encoded.
"""

import base64
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

WORDS = [
    "invoice",
    "order",
    "shipment",
    "account",
    "password",
    "meeting",
    "report",
    "update",
    "customer",
    "service",
    "payment",
    "delivery",
    "notice",
    "reminder",
    "project",
    "schedule",
    "contract",
    "ticket",
    "request",
    "response",
    "summary",
    "attached",
    "regards",
    "team",
    "system",
    "server",
    "release",
    "change",
    "review",
    "approval",
    "question",
    "answer",
    "detail",
    "product",
    "market",
    "quarter",
    "budget",
    "travel",
    "booking",
]
RARE = "zanzibar"  # in the body of one message in a hundred
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)


def messages(count: int) -> Iterator[bytes]:
    """Give the messages in the order of their arrival."""
    chance = random.Random(5)
    for number in range(count):
        yield _message(number, chance)


def _message(number: int, chance: random.Random) -> bytes:
    person, thread = number % 97, number // 5
    subject = " ".join(chance.choices(WORDS, k=6))
    if number % 10 == 3:
        subject = "=?utf-8?b?" + base64.b64encode(f"Grüße: {subject}".encode()).decode() + "?="
    date = format_datetime(BEGIN + timedelta(minutes=17 * number - 40 * (number % 7)))
    fields = [
        f"Received: from mx{person}.example.net (mx{person}.example.net [192.0.2.{person}])\r\n"
        f"\tby mail.bench.test with ESMTPS id {number:08x}; {date}",
        f"From: Person {person} <person{person}@example.net>",
        "To: User <user@bench.test>",
        f"Subject: {'Re: ' if number % 5 else ''}{subject}",
        f"Date: {date}",
        f"Message-ID: <{number}.{thread}@example.net>",
        "MIME-Version: 1.0",
        "X-Mailer: Bench 1.0",
        f"List-Unsubscribe: <https://example.net/u/{number}>",
    ]
    if number % 5:
        fields.append(f"In-Reply-To: <{number - 1}.{thread}@example.net>")
        known = " ".join(f"<{one}.{thread}@example.net>" for one in range(thread * 5, number))
        fields.append(f"References: {known}")
    return _with_body(fields, number, chance)


def _with_body(fields: list[str], number: int, chance: random.Random) -> bytes:
    text = _text(chance, 900 + number % 700, RARE if number % 100 == 42 else "")
    if number % 4 == 0:
        fields.append("Content-Type: text/plain; charset=utf-8")
        return ("\r\n".join(fields) + "\r\n\r\n" + text).encode()
    html = (
        "<html><body><p>"
        + _text(chance, 1800 + number % 900, "").replace("\r\n", "<br>\r\n")
        + "</p></body></html>\r\n"
    )
    edge = f"edge{number}"
    inner = (
        f"--{edge}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
        f"--{edge}\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}\r\n--{edge}--\r\n"
    )
    if number % 4 < 3:
        fields.append(f'Content-Type: multipart/alternative; boundary="{edge}"')
        return ("\r\n".join(fields) + "\r\n\r\n" + inner).encode()
    data = base64.encodebytes(chance.randbytes(7000 + number % 5000)).decode().replace("\n", "\r\n")
    fields.append(f'Content-Type: multipart/mixed; boundary="m{edge}"')
    outer = (
        f'--m{edge}\r\nContent-Type: multipart/alternative; boundary="{edge}"\r\n\r\n{inner}\r\n'
        f'--m{edge}\r\nContent-Type: application/pdf; name="file{number}.pdf"\r\n'
        f"Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n{data}--m{edge}--\r\n"
    )
    return ("\r\n".join(fields) + "\r\n\r\n" + outer).encode()


def _text(chance: random.Random, octets: int, extra: str) -> str:
    lines, size = [], 0
    while size < octets:
        lines.append(" ".join(chance.choices(WORDS, k=10)))
        size += len(lines[-1]) + 2
    if extra:
        lines.insert(len(lines) // 2, f"the word is {extra} here")
    return "\r\n".join(lines) + "\r\n"
