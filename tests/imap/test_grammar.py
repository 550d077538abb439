import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.imap import commands as c
from server.imap import grammar
from server.imap.commands import FetchAttribute as A
from server.imap.commands import Numbering, Section, SectionText
from server.imap.scanner import ImapSyntax
from server.imap.sequence import SequenceSet
from storage.records import Flag

ONE = SequenceSet(((1, 1),))
ALL = SequenceSet(((1, 0),))
DAY = datetime.date(1994, 2, 1).toordinal()

COMMANDS = [
    (b"a CAPABILITY", c.Capability()),
    (b"a nOOp", c.Noop()),
    (b"a LOGIN ann secret", c.Login(b"ann", b"secret")),
    (b'a LOGIN "an\\"n" "se\\\\cr]et"', c.Login(b'an"n', b"se\\cr]et")),
    (b"a LOGIN {3}\r\nann {6+}\r\nse\r\nt ", c.Login(b"ann", b"se\r\nt ")),
    (b'a LOGIN ann "p\xc3\xa4ss"', c.Login(b"ann", "päss".encode())),
    (b"a AUTHENTICATE PLAIN", c.Authenticate("PLAIN", None)),
    (b"a AUTHENTICATE plain AGFubgBw", c.Authenticate("PLAIN", b"AGFubgBw")),
    (b"a AUTHENTICATE PLAIN =", c.Authenticate("PLAIN", b"")),
    (b"a ENABLE CONDSTORE x-unknown", c.Enable(("CONDSTORE", "X-UNKNOWN"))),
    (b"a ID NIL", c.Identify(())),
    (b'a ID ("name" "x" "version" NIL)', c.Identify((("name", "x"), ("version", "")))),
    (b"a SELECT inbox", c.Select("INBOX", c.Access.READ_WRITE)),
    (b"a EXAMINE Inbox/sub", c.Select("INBOX/sub", c.Access.READ_ONLY)),
    (b"a SELECT x (CONDSTORE)", c.Select("x", c.Access.READ_WRITE, condstore=True)),
    (
        b"a SELECT x (QRESYNC (67890007 90060115194045000 41:211,214 (1:3 41:43)))",
        c.Select(
            "x",
            c.Access.READ_WRITE,
            qresync=c.Resynchronise(
                67890007,
                90060115194045000,
                SequenceSet(((41, 211), (214, 214))),
                (SequenceSet(((1, 3),)), SequenceSet(((41, 43),))),
            ),
        ),
    ),
    (b"a CREATE Entw&APw-rfe", c.Create("Entwürfe")),
    (b"a CREATE s (USE (\\sent))", c.Create("s", ("\\Sent",))),
    (b'a RENAME "a b" c', c.Rename("a b", "c")),
    (b"a SUBSCRIBE x", c.Subscribe("x", subscribed=True)),
    (b'a LIST "" *', c.Listing("", ("*",))),
    (b'a LIST "" ""', c.Listing("", ("",))),
    (
        b'a LIST (SUBSCRIBED) "" ("INBOX" x%) RETURN (CHILDREN STATUS (MESSAGES UNSEEN))',
        c.Listing(
            "",
            ("INBOX", "x%"),
            frozenset({"SUBSCRIBED"}),
            frozenset({"CHILDREN"}),
            ("MESSAGES", "UNSEEN"),
            extended=True,
        ),
    ),
    (b'a LSUB "" %', c.SubscribedListing("", "%")),
    (b"a STATUS x (MESSAGES uidnext SIZE)", c.Status("x", ("MESSAGES", "UIDNEXT", "SIZE"))),
    (b"a EXPUNGE", c.Expunge(None)),
    (b"a UID EXPUNGE 1:*", c.Expunge(ALL)),
    (b"a FETCH 1 ALL", c.Fetch(ONE, (A.FLAGS, A.INTERNALDATE, A.SIZE, A.ENVELOPE), Numbering.MESSAGE)),
    (b"a UID FETCH 1:* (FLAGS UID)", c.Fetch(ALL, (A.FLAGS, A.UID), Numbering.UID)),
    (
        b"a UID FETCH 1:* FLAGS (CHANGEDSINCE 5 VANISHED)",
        c.Fetch(ALL, (A.FLAGS,), Numbering.UID, changed_since=5, vanished=True),
    ),
    (
        b"a FETCH 1 BODY[]<0.2048>",
        c.Fetch(ONE, (Section(b"BODY[]", partial=(0, 2048), peek=False),), Numbering.MESSAGE),
    ),
    (
        b'a FETCH 1 body.peek[1.2.header.fields (From "To" {2+}\r\ncc)]',
        c.Fetch(
            ONE,
            (
                Section(
                    b"BODY[1.2.HEADER.FIELDS (From To cc)]",
                    SectionText.HEADER_FIELDS,
                    (1, 2),
                    frozenset({b"from", b"to", b"cc"}),
                ),
            ),
            Numbering.MESSAGE,
        ),
    ),
    (
        b"a FETCH 1 (BODY[1.MIME] RFC822.TEXT BODY)",
        c.Fetch(
            ONE,
            (
                Section(b"BODY[1.MIME]", SectionText.MIME, (1,), peek=False),
                Section(b"RFC822.TEXT", SectionText.TEXT, peek=False),
                A.BODY,
            ),
            Numbering.MESSAGE,
        ),
    ),
    (
        b"a STORE 1 +FLAGS.SILENT (\\Seen \\Recent $Forwarded Work)",
        c.Store(
            ONE, c.StoreMode.ADD, c.Echo.SILENT, Flag.SEEN | Flag.FORWARDED, ("Work",), Numbering.MESSAGE
        ),
    ),
    (
        b"a UID STORE 1 (UNCHANGEDSINCE 9) FLAGS \\Deleted a",
        c.Store(ONE, c.StoreMode.SET, c.Echo.TOLD, Flag.DELETED, ("a",), Numbering.UID, 9),
    ),
    (b"a STORE 1 FLAGS ()", c.Store(ONE, c.StoreMode.SET, c.Echo.TOLD, 0, (), Numbering.MESSAGE)),
    (b"a COPY 1 Trash", c.Copy(ONE, "Trash", Numbering.MESSAGE)),
    (b"a UID MOVE 1 Trash", c.Move(ONE, "Trash", Numbering.UID)),
    (b"a SEARCH ALL", c.Search(c.All(), Numbering.MESSAGE)),
    (
        b"a SEARCH RETURN () CHARSET utf-8 UNSEEN SUBJECT {3+}\r\n\xc3\x84x",
        c.Search(
            c.And((c.Not(c.Flagged(Flag.SEEN)), c.Header("subject", "a\u0308x"))),
            Numbering.MESSAGE,
            frozenset({"ALL"}),
        ),
    ),
    (
        b'a UID SEARCH OR (1:3 NOT KEYWORD Work) SENTSINCE 1-feb-1994 MODSEQ "/flags/\\\\draft" all 7',
        c.Search(
            c.And(
                (
                    c.Or(
                        c.And(
                            (c.Numbers(SequenceSet(((1, 3),)), Numbering.MESSAGE), c.Not(c.Keyword("work")))
                        ),
                        c.Dated(c.DateField.SENT, c.Relation.SINCE, DAY),
                    ),
                    c.ModifiedSince(7),
                )
            ),
            Numbering.UID,
        ),
    ),
    (
        b'a SEARCH HEADER X-Mailer "" LARGER 10 YOUNGER 60 UID $ BODY Foo',
        c.Search(
            c.And(
                (
                    c.Header("x-mailer", ""),
                    c.Sized(c.SizeRelation.LARGER, 10),
                    c.Within(c.Relation.SINCE, 60),
                    c.Numbers(SequenceSet((), saved=True), Numbering.UID),
                    c.Text(c.TextScope.BODY, "foo"),
                )
            ),
            Numbering.MESSAGE,
        ),
    ),
]


@pytest.mark.parametrize(("line", "command"), COMMANDS, ids=lambda value: repr(value)[:60])
def test_command_is_understood(line, command):
    assert grammar.parse(line) == c.Tagged(b"a", command)


REFUSED = [
    (b"", b"", b"BAD"),
    (b"a", b"a", b"BAD"),
    (b" a NOOP", b"", b"BAD"),
    (b"+ NOOP", b"", b"BAD"),
    (b"a  NOOP", b"a", b"BAD"),
    (b"a NOOP ", b"a", b"BAD"),
    (b"a NOOP x", b"a", b"BAD"),
    (b"a XYZZY", b"a", b"BAD"),
    (b"a UID NOOP", b"a", b"BAD"),
    (b"a LOGIN ann", b"a", b"BAD"),
    (b'a LOGIN ann "x', b"a", b"BAD"),
    (b'a LOGIN ann "x\r"', b"a", b"BAD"),
    (b"a LOGIN ann x\0y", b"a", b"BAD"),
    (b"a LOGIN ann {3+}\r\na\0b", b"a", b"BAD"),
    (b"a LOGIN a\xc3nn x", b"a", b"BAD"),
    (b"a SELECT &APw", b"a", b"NO"),
    (b"a SELECT x (FOO)", b"a", b"BAD"),
    (b"a FETCH 0 FLAGS", b"a", b"BAD"),
    (b"a FETCH 1 ()", b"a", b"BAD"),
    (b"a FETCH 1 (FLAGS ALL)", b"a", b"BAD"),
    (b"a FETCH 1 BODY[MIME]", b"a", b"BAD"),
    (b"a FETCH 1 BODY[0]", b"a", b"BAD"),
    (b"a FETCH 1 BODY[]<0.0>", b"a", b"BAD"),
    (b"a FETCH 1 BODY[HEADER.FIELDS ()]", b"a", b"BAD"),
    (b"a FETCH 1 BODY[HEADER.FIELDS (a:b)]", b"a", b"BAD"),
    (b"a FETCH 1 FLAGS (CHANGEDSINCE 1 VANISHED)", b"a", b"BAD"),
    (b"a STORE 1 FLAGS \\Foo", b"a", b"BAD"),
    (b"a STORE 1 SIZE 4", b"a", b"BAD"),
    (b"a STATUS x ()", b"a", b"BAD"),
    (b"a SEARCH", b"a", b"BAD"),
    (b"a SEARCH CHARSET x-none ALL", b"a", b"NO"),
    (b"a SEARCH CHARSET us-ascii SUBJECT {1+}\r\n\xff", b"a", b"NO"),
    (b"a SEARCH SINCE 31-Feb-2024", b"a", b"BAD"),
    (b"a SEARCH " + b"NOT " * 1000 + b"ALL", b"a", b"NO"),
    (b"a SEARCH " + b"(" * 1000 + b"ALL" + b")" * 1000, b"a", b"NO"),
    (b"a SEARCH " + b"ALL " * 2000 + b"ALL", b"a", b"NO"),
    (b"a APPEND INBOX", b"a", b"BAD"),
    (b'a LIST (RECURSIVEMATCH) "" *', b"a", b"BAD"),
]


@pytest.mark.parametrize(("line", "tag", "status"), REFUSED, ids=lambda value: repr(value)[:40])
def test_malformed_command_is_refused_with_its_tag(line, tag, status):
    with pytest.raises(ImapSyntax) as caught:
        grammar.parse(line)
    assert (caught.value.tag, caught.value.status) == (tag, status)
    assert caught.value.text


@pytest.mark.parametrize(
    ("head", "command"),
    [
        (b"a APPEND INBOX ", c.Append("INBOX", 0, (), None)),
        (b"a append {1+}\r\nx (\\Seen Work) ", c.Append("x", Flag.SEEN, ("Work",), None)),
        (
            b'a APPEND x (\\Draft) "17-Jul-1996 02:44:25 -0700" ',
            c.Append("x", Flag.DRAFT, (), 837_596_665_000_000),
        ),
        (b'a APPEND x " 1-Jan-1970 00:00:60 +0000" ', c.Append("x", 0, (), 59_000_000)),
    ],
)
def test_head_of_append_is_understood(head, command):
    assert grammar.parse_append(head) == c.Tagged(b"a", command)


@pytest.mark.parametrize(
    "head",
    [b"a APPEND x", b"a APPEND x (\\Seen", b'a APPEND x "yesterday" ',
     b'a APPEND x "31-Feb-2024 00:00:00 +0000" ',
     b'a APPEND x "01-Jan-0001 00:00:00 +9999" ', b"a APPEND x UTF8 ("],
)  # fmt: skip
def test_malformed_head_of_append_is_refused(head):
    with pytest.raises(ImapSyntax):
        grammar.parse_append(head)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([line for line, _ in COMMANDS]), st.data())
def test_mutated_commands_are_parsed_or_refused_and_nothing_else(line, data):
    at = data.draw(st.integers(0, len(line)))
    mutated = line[:at] + data.draw(st.binary(max_size=3)) + line[at + data.draw(st.integers(0, 3)) :]
    try:
        grammar.parse(mutated)
    except ImapSyntax as error:
        assert mutated.startswith(error.tag)
