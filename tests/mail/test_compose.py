import email
import email.policy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.mail.address import AddressSyntax, Mailbox
from server.mail.compose import Attachment, Draft, NamedAddress, compose, parse_named_address
from server.mail.header import decode, fields, split
from server.mail.structure import scan
from server.mail.text import find_body, part_octets, part_source

GOLDEN = Path(__file__).parent / "golden"
AT = 1_763_879_040_000_000


def draft(**more):
    given = {
        "from_": NamedAddress(Mailbox("a", "example.org"), "Ann"),
        "message_id": "id@example.org",
        "at": AT,
        "to": (NamedAddress(Mailbox("b", "example.net")),),
    }
    return Draft(**(given | more))


def full_draft():
    return draft(
        from_=parse_named_address("Zoë <zoe@bücher.example>"),
        to=(parse_named_address('"Last, First" <b@example.net>'), parse_named_address("c@example.net")),
        cc=(parse_named_address("d@example.net"),),
        reply_to=(parse_named_address("r@example.org"),),
        subject="Grüße an alle, die dies lesen, und an alle anderen ebenso",
        text="Hällo\nWorld\n",
        html='<p>Hällo <img src="cid:logo@x"></p>',
        attachments=(
            Attachment("Übersicht.pdf", "application/pdf", b"%PDF" + bytes(range(200))),
            Attachment("logo.png", "image/png", b"\x89PNG", content_id="logo@x"),
            Attachment("mail.eml", "message/rfc822", b"Subject: in\n\nbody\n"),
        ),
        in_reply_to="<p@example.net>",
        references=("<o@example.net>", "not an id", "<p@example.net>"),
        headers=(("X-Order", "12"), ("List-Unsubscribe", "<https://example.org/u>")),
    )


def test_full_message_is_the_golden_one():
    assert compose(full_draft()) == (GOLDEN / "composed.eml").read_bytes()


def test_full_message_reads_back_by_ours_and_by_another_parser():
    octets = compose(full_draft())
    root = scan(octets)
    assert [part.kind for part in root.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related",
        "text/html", "image/png",
        "application/pdf", "message/rfc822", "text/plain",
    ]  # fmt: skip
    assert root.parts[1].content.filename == "Übersicht.pdf"
    assert part_octets(root.parts[1], octets) == b"%PDF" + bytes(range(200))
    other = email.message_from_bytes(octets, policy=email.policy.default)
    assert not other.defects
    assert other["subject"] == "Grüße an alle, die dies lesen, und an alle anderen ebenso"
    assert other["from"].addresses[0].display_name == "Zoë"
    assert [a.addr_spec for a in other["to"].addresses] == ["b@example.net", "c@example.net"]
    assert other["references"] == "<o@example.net> <p@example.net>"
    assert [part.get_filename() for part in other.iter_attachments()] == ["Übersicht.pdf", "mail.eml"]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)


@settings(max_examples=60, deadline=None)
@given(
    TEXTS | st.text("x", min_size=990, max_size=2100),
    TEXTS,
    st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=120),
    st.binary(max_size=300),
)
def test_every_draft_is_seven_bit_with_short_lines_and_reads_back(text, html, name, content):
    file = Attachment(name, "application/x-any", content)
    octets = compose(draft(text=text, html=html, subject=name, attachments=(file,)))
    assert octets.isascii()
    assert b"\n" not in octets.replace(b"\r\n", b"")
    assert b"\r" not in octets.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in octets.split(b"\r\n"))
    root = scan(octets)
    plain, page, attached = find_body(root, "text/plain"), find_body(root, "text/html"), root.parts[1]
    assert plain and page
    for part, written in ((plain, text), (page, html)):
        lines = written.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")
        assert part_source(part, octets).rstrip("\n") == lines.rstrip("\n")
    assert part_octets(attached, octets) == content
    assert (attached.content.filename or "") == name
    subject = next(field.value for field in fields(octets[: split(octets)]) if field.name == b"Subject")
    assert decode(subject).split() == name.split()


INJECTIONS = ["x\r\nBcc: e@evil", "x\nBcc: e@evil", "x\rBcc: e@evil", "x\x00", "x\x1b"]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize(
    "place",
    [
        lambda t: {"subject": t},
        lambda t: {"message_id": f"{t}@x"},
        lambda t: {"headers": (("X-A", t),)},
        lambda t: {"headers": ((t, "x"),)},
        lambda t: {"from_": NamedAddress(Mailbox("a", "b"), t)},
        lambda t: {"to": (NamedAddress(Mailbox("a", "b"), t),)},
        lambda t: {"attachments": (Attachment(t, "a/b", b""),)},
        lambda t: {"attachments": (Attachment("f", f"a/b; x={t}", b""),)},
        lambda t: {"attachments": (Attachment("f", t, b""),)},
        lambda t: {"html": "", "attachments": (Attachment("f", "a/b", b"", content_id=t),)},
    ],
)
def test_control_characters_never_reach_a_header(text, place):
    with pytest.raises(ValueError, match=r"."):
        compose(draft(**place(text)))


@pytest.mark.parametrize(
    "name",
    ["Bcc", "bcc", "Received", "DKIM-Signature", "Content-Type", "Date", "Resent-To", "ARC-Seal", "From"],
)
def test_fields_of_our_own_cannot_be_set(name):
    with pytest.raises(ValueError, match="cannot be set"):
        compose(draft(headers=((name, "x"),)))


@pytest.mark.parametrize("kind", ["multipart/mixed", "text", "", "a@b/c", "a/b/c", "tëxt/plain"])
def test_content_types_of_attachments_are_checked(kind):
    with pytest.raises(ValueError, match=r"."):
        compose(draft(attachments=(Attachment("f", kind, b""),)))


def test_unusable_ids_of_others_are_left_out():
    octets = compose(draft(in_reply_to="a b\r\nX: y", references=("<a@b>", "\r\n", "<ü@b>")))
    assert b"In-Reply-To" not in octets
    assert b"References: <a@b>\r\n" in octets


def test_references_keep_the_root_and_the_newest():
    octets = compose(draft(references=tuple(f"<{n}@x>" for n in range(200))))
    values = [field.value for field in fields(octets[: split(octets)]) if field.name == b"References"]
    assert values[0].split()[0] == b"<0@x>"
    assert values[0].split()[-1] == b"<199@x>"
    assert len(values[0].split()) == 50


def test_no_recipients_are_undisclosed_ones():
    assert b"To: undisclosed-recipients:;\r\n" in compose(draft(to=()))


def test_text_that_quotes_the_boundary_gets_another_one():
    first = compose(draft(text="a", html="b"))
    boundary = scan(first).content.media.boundary
    again = compose(draft(text=f"--{boundary.decode()}--", html="b"))
    assert scan(again).content.media.boundary != boundary
    assert len(scan(again).parts) == 2


def test_address_that_is_not_ascii_is_the_one_thing_in_utf_8():
    octets = compose(draft(to=(parse_named_address("ü@bücher.example"),)))
    assert "To: ü@xn--bcher-kva.example\r\n".encode() in octets


@pytest.mark.parametrize(
    ("text", "display", "local"),
    [
        ("a@b", "", "a"),
        ("<a@b>", "", "a"),
        ("Some One <a@b>", "Some One", "a"),
        ('"One, Some" <a@b>', "One, Some", "a"),
        ('"q\\"" <"x y"@b>', 'q"', "x y"),
        ("Zoë<a@b>", "Zoë", "a"),
    ],
)
def test_named_addresses_are_read(text, display, local):
    assert parse_named_address(text) == NamedAddress(Mailbox(local, "b"), display)


@pytest.mark.parametrize(
    "text", ["", "x", "<>", "x <a>", "x a@b>", "x\r\ny <a@b>", "a@b, c@d", "x <a@b> <c@d>x"]
)
def test_bad_named_addresses_are_refused(text):
    with pytest.raises(AddressSyntax):
        parse_named_address(text)
