"""Sessions on real sockets: what a client sees."""

import re
from typing import Any

import pytest

from server.login import new_key
from storage import accounts
from tests.imap.appliance import Appliance, Inbox, Wire

MESSAGE = (
    b"From: Bob <bob@elsewhere.example>\r\nTo: ann@d.example\r\nSubject: Hello there\r\n"
    b"Date: Mon, 1 Jan 2024 10:00:00 +0000\r\nMessage-ID: <1@elsewhere.example>\r\n\r\nBody text.\r\n"
)
PREFIX = b"Return-Path: <bob@elsewhere.example>\r\nDelivered-To: ann@d.example\r\n"


def numbers(line: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"\d+", line)]


def test_greeting_and_capabilities_before_and_after_login(appliance: Appliance, inbox: Inbox):
    plain = Wire(appliance, tls=False)
    assert b"LOGINDISABLED" in plain.greeting and b"STARTTLS" in plain.greeting
    assert plain.command(f"LOGIN {inbox.address} {inbox.password}")[1].startswith(b"NO [PRIVACYREQUIRED]")
    assert plain.command("AUTHENTICATE PLAIN")[1].startswith(b"NO [PRIVACYREQUIRED]")
    secure = Wire(appliance)
    assert b"AUTH=PLAIN" in secure.greeting and b"STARTTLS" not in secure.greeting
    _, completion = secure.command(f"LOGIN {inbox.address} {inbox.password}")
    assert completion.startswith(b"OK [CAPABILITY IMAP4rev1") and b"UIDPLUS" in completion
    assert secure.ok("CAPABILITY")[0].startswith(b"* CAPABILITY IMAP4rev1")
    assert secure.ok("LOGOUT") == [b"* BYE Logging out"]
    assert secure.line() == b""


def test_select_describes_the_mailbox(wire: Wire, appliance: Appliance, inbox: Inbox):
    appliance.deliver(inbox, MESSAGE, prefix=PREFIX)
    lines, completion = wire.command("SELECT inbox")
    assert completion.startswith(b"OK [READ-WRITE]")
    text = b"\n".join(lines)
    for expected in (
        b"* 1 EXISTS",
        b"* 1 RECENT",
        b"[UNSEEN 1]",
        b"[UIDNEXT 2]",
        b"[UIDVALIDITY ",
        b"* FLAGS (",
    ):
        assert expected in text
    assert wire.command("EXAMINE INBOX")[1].startswith(b"OK [READ-ONLY]")
    assert wire.command("SELECT nowhere")[1].startswith(b"NO [NONEXISTENT]")
    assert wire.command("FETCH 1 FLAGS")[1].startswith(b"BAD")


def test_fetch_of_every_item(wire: Wire, appliance: Appliance, inbox: Inbox):
    appliance.deliver(inbox, MESSAGE, prefix=PREFIX)
    wire.ok("EXAMINE INBOX")
    size = len(PREFIX + MESSAGE)
    whole = PREFIX + MESSAGE
    header = whole[: whole.index(b"\r\n\r\n") + 4]
    (line,) = wire.ok("FETCH 1 (UID RFC822.SIZE ENVELOPE BODY BODYSTRUCTURE)")
    assert b"UID 1 RFC822.SIZE %d" % size in line
    assert (
        b'ENVELOPE ("Mon, 1 Jan 2024 10:00:00 +0000" "Hello there" (("Bob" NIL "bob" "elsewhere.example"))'
        in line
    )
    assert b'BODY ("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 12 1)' in line
    assert wire.ok("FETCH 1 BODY[]") == [b"* 1 FETCH (BODY[] {%d}\r\n%b)" % (size, whole)]
    assert wire.ok("FETCH 1 RFC822") == [b"* 1 FETCH (RFC822 {%d}\r\n%b)" % (size, whole)]
    assert wire.ok("FETCH 1 BODY[HEADER]") == [b"* 1 FETCH (BODY[HEADER] {%d}\r\n%b)" % (len(header), header)]
    assert wire.ok("FETCH 1 BODY[TEXT]") == [b"* 1 FETCH (BODY[TEXT] {12}\r\nBody text.\r\n)"]
    assert wire.ok("FETCH 1 BODY[1]") == [b"* 1 FETCH (BODY[1] {12}\r\nBody text.\r\n)"]
    assert wire.ok("FETCH 1 BODY[2]") == [b"* 1 FETCH (BODY[2] NIL)"]
    assert wire.ok("FETCH 1 BODY[TEXT]<5.100>") == [b"* 1 FETCH (BODY[TEXT]<5> {7}\r\ntext.\r\n)"]
    assert wire.ok("FETCH 1 BODY[TEXT]<500.1>") == [b"* 1 FETCH (BODY[TEXT]<500> {0}\r\n)"]
    assert wire.ok("FETCH 1 BODY.PEEK[HEADER.FIELDS (subject x-none RETURN-PATH)]") == [
        b"* 1 FETCH (BODY[HEADER.FIELDS (subject x-none RETURN-PATH)] {62}\r\n"
        b"Return-Path: <bob@elsewhere.example>\r\nSubject: Hello there\r\n\r\n)"
    ]
    (line,) = wire.ok("FETCH 1 BODY[HEADER.FIELDS.NOT (from to date message-id subject)]")
    assert line.endswith(b"}\r\n" + PREFIX + b"\r\n)")
    assert re.search(rb'INTERNALDATE "[ \d]\d-\w{3}-\d{4} [\d:]{8} \+0000"', wire.ok("FETCH 1 FAST")[0])
    assert wire.ok("FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS (\\Recent))"]


def test_fetching_a_body_marks_it_seen_only_where_it_may(wire: Wire, appliance: Appliance, inbox: Inbox):
    appliance.deliver(inbox, MESSAGE)
    wire.ok("SELECT INBOX")
    assert b"\\Seen" not in wire.ok("FETCH 1 BODY.PEEK[TEXT]")[0]
    (line,) = wire.ok("FETCH 1 BODY[TEXT]")
    assert line == b"* 1 FETCH (FLAGS (\\Seen \\Recent) BODY[TEXT] {12}\r\nBody text.\r\n)"
    (line,) = wire.ok("FETCH 1 BODY[TEXT]")
    assert b"FLAGS" not in line
    assert wire.ok("NOOP") == []


def test_append_answers_with_its_uid_and_the_message_is_there(wire: Wire):
    wire.ok("SELECT INBOX")
    completion = wire.append("INBOX", MESSAGE, '(\\Seen $Work) "17-Jul-1996 02:44:25 -0700" ')
    assert re.match(rb"OK \[APPENDUID \d+ 1\]", completion)
    lines = wire.ok("FETCH 1 (FLAGS INTERNALDATE RFC822)")
    assert b"\\Seen $Work \\Recent" in lines[-1] or b"\\Seen $Work" in lines[-1]
    assert b'INTERNALDATE "17-Jul-1996 09:44:25 +0000"' in lines[-1]
    assert lines[-1].endswith(MESSAGE + b")")


def test_append_announces_the_message_before_its_completion(wire: Wire):
    wire.ok("SELECT INBOX")
    wire.send(b"x APPEND INBOX {%d+}\r\n%b\r\n" % (len(MESSAGE), MESSAGE))
    untagged, completion = wire.answer(b"x")
    assert completion.startswith(b"OK") and b"* 1 EXISTS" in untagged


def test_append_to_a_missing_mailbox_says_trycreate_and_does_not_ask_for_the_message(wire: Wire):
    assert wire.command("APPEND Nowhere {10}")[1].startswith(b"NO [TRYCREATE]")
    assert wire.append("Nowhere", MESSAGE).startswith(b"NO [TRYCREATE]")
    wire.ok("NOOP")


def test_append_of_more_than_allowed_is_refused_and_the_session_goes_on(wire: Wire):
    assert wire.command("APPEND INBOX {99999999}")[1].startswith(b"NO [TOOBIG]")
    wire.ok("NOOP")


def test_append_refuses_nul_and_zero_octets_and_several_messages(wire: Wire):
    assert wire.append("INBOX", b"a\0b").startswith(b"BAD")
    assert wire.command("APPEND INBOX {0}")[1].startswith(b"NO")
    wire.send(b"x APPEND INBOX {1+}\r\na {1+}\r\nb\r\n")
    assert wire.answer(b"x")[1].startswith(b"BAD")
    wire.send(b"y APPEND INBOX {1+}\r\na trailing\r\n")
    assert wire.answer(b"y")[1].startswith(b"BAD")
    assert b"* 0 EXISTS" in wire.ok("SELECT INBOX")


def test_appended_line_feeds_become_crlf(wire: Wire):
    wire.append("INBOX", b"Subject: x\n\na\nb\n")
    wire.ok("EXAMINE INBOX")
    assert wire.ok("FETCH 1 RFC822")[0].endswith(b"Subject: x\r\n\r\na\r\nb\r\n)")


def test_large_append_and_fetch_are_octet_for_octet(wire: Wire):
    body = b"Subject: large\r\n\r\n" + b"".join(b"%072d\r\n" % number for number in range(20_000))
    assert wire.append("INBOX", body).startswith(b"OK")
    wire.ok("SELECT INBOX")
    (line,) = wire.ok("UID FETCH 1 (RFC822.SIZE BODY.PEEK[])")
    assert line == b"* 1 FETCH (UID 1 RFC822.SIZE %d BODY[] {%d}\r\n%b)" % (len(body), len(body), body)
    (line,) = wire.ok("FETCH 1 BODY.PEEK[TEXT]<1000.500000>")
    start = body.index(b"\r\n\r\n") + 4 + 1000
    assert line == b"* 1 FETCH (BODY[TEXT]<1000> {500000}\r\n%b)" % body[start : start + 500_000]


def test_store_tells_flags_unless_silent(wire: Wire):
    for _ in range(3):
        wire.append("INBOX", MESSAGE)
    wire.ok("SELECT INBOX")
    lines = wire.ok("STORE 1:2 +FLAGS (\\Flagged Work)")
    assert [line for line in lines if b"FETCH" in line] == [
        b"* 1 FETCH (UID 1 FLAGS (\\Flagged Work \\Recent))",
        b"* 2 FETCH (UID 2 FLAGS (\\Flagged Work \\Recent))",
    ]
    assert any(line.startswith(b"* FLAGS (") and b"Work" in line for line in lines)
    assert wire.ok("STORE 2:3 FLAGS.SILENT (\\Seen)") == []
    assert wire.ok("STORE 1 -FLAGS (\\Flagged)") == [b"* 1 FETCH (UID 1 FLAGS (Work \\Recent))"]
    assert wire.ok("FETCH 1:* FLAGS") == [
        b"* 1 FETCH (FLAGS (Work \\Recent))",
        b"* 2 FETCH (FLAGS (\\Seen \\Recent))",
        b"* 3 FETCH (FLAGS (\\Seen \\Recent))",
    ]


def test_other_sessions_hear_of_changes_in_order(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.ok("SELECT INBOX")
    other = Wire(appliance).login(inbox)
    other.ok("SELECT INBOX")
    for _ in range(3):
        other.append("INBOX", MESSAGE)
    assert wire.ok("NOOP")[0] == b"* 3 EXISTS"
    other.ok("STORE 1,3 +FLAGS.SILENT (\\Deleted)")
    other.ok("EXPUNGE")
    # The number of a message must not move while FETCH by number runs (RFC 9051 7.5.1).
    assert wire.ok("FETCH 2 UID") == [b"* 2 FETCH (UID 2)"]
    assert wire.ok("NOOP") == [b"* 3 EXPUNGE", b"* 1 EXPUNGE"]
    assert wire.ok("FETCH 1 UID") == [b"* 1 FETCH (UID 2)"]


def test_idle_tells_at_once_and_ends_with_done(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.ok("SELECT INBOX")
    wire.send(b"i IDLE\r\n")
    assert wire.line().startswith(b"+ ")
    appliance.deliver(inbox, MESSAGE)
    assert wire.line() == b"* 1 EXISTS"
    assert wire.line() == b"* 1 RECENT"
    wire.send(b"DONE\r\n")
    assert wire.answer(b"i")[1].startswith(b"OK")
    wire.send(b"j IDLE\r\n")
    wire.line()
    wire.send(b"NOOP\r\n")
    assert wire.answer(b"j")[1].startswith(b"BAD")


def test_expunge_close_and_uid_expunge(wire: Wire):
    for _ in range(5):
        wire.append("INBOX", MESSAGE)
    wire.ok("SELECT INBOX")
    wire.ok("STORE 1,2,4 +FLAGS.SILENT (\\Deleted)")
    assert wire.ok("UID EXPUNGE 2:3") == [b"* 2 EXPUNGE"]
    assert wire.ok("EXPUNGE") == [b"* 3 EXPUNGE", b"* 1 EXPUNGE"]
    wire.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    assert wire.ok("CLOSE") == []
    assert b"* 1 EXISTS" in wire.ok("SELECT INBOX")
    wire.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    wire.ok("UNSELECT")
    assert b"* 1 EXISTS" in wire.ok("EXAMINE INBOX")
    assert wire.command("EXPUNGE")[1].startswith(b"NO [READ-ONLY]")


def test_copy_and_move_answer_with_copyuid(wire: Wire):
    for _ in range(4):
        wire.append("INBOX", MESSAGE)
    wire.ok("SELECT INBOX")
    wire.ok("STORE 2 +FLAGS.SILENT (\\Answered)")
    _, completion = wire.command("COPY 2:3 Archive")
    assert re.match(rb"OK \[COPYUID \d+ 2:3 1:2\]", completion)
    untagged, completion = wire.command("UID MOVE 1,4 Archive")
    assert re.match(rb"\* OK \[COPYUID \d+ 1,4 3:4\]", untagged[0])
    assert untagged[1:] == [b"* 4 EXPUNGE", b"* 1 EXPUNGE"] and completion.startswith(b"OK")
    assert wire.command("COPY 1 Nowhere")[1].startswith(b"NO [TRYCREATE]")
    wire.ok("SELECT Archive")
    assert wire.ok("FETCH 1 FLAGS")[0].startswith(b"* 1 FETCH (FLAGS (\\Answered")
    assert wire.ok("FETCH 1:* BODY.PEEK[TEXT]")[3].endswith(b"Body text.\r\n)")


def test_mailboxes_are_made_listed_renamed_and_deleted(wire: Wire):
    wire.ok("CREATE Projects/Alpha")
    assert wire.command("CREATE Projects/Alpha")[1].startswith(b"NO [ALREADYEXISTS]")
    assert wire.command("CREATE inbox")[1].startswith(b"NO [ALREADYEXISTS]")
    assert wire.ok('LIST "" Projects*') == [
        b'* LIST (\\HasChildren) "/" Projects',
        b'* LIST (\\HasNoChildren) "/" Projects/Alpha',
    ]
    assert wire.ok('LIST "" ""') == [b'* LIST (\\Noselect) "/" ""']
    assert b'* LIST (\\Sent \\HasNoChildren) "/" Sent' in wire.ok('LIST "" %')
    wire.ok("RENAME Projects Work")
    assert wire.ok('LIST "Work/" %') == [b'* LIST (\\HasNoChildren) "/" Work/Alpha']
    wire.ok("CREATE Entw&APw-rfe")
    assert wire.ok('LIST "" Entw*') == [b'* LIST (\\HasNoChildren) "/" Entw&APw-rfe']
    wire.ok("DELETE Work/Alpha")
    assert wire.command("DELETE Work/Alpha")[1].startswith(b"NO [NONEXISTENT]")
    assert wire.command("DELETE INBOX")[1].startswith(b"NO [CANNOT]")
    assert wire.command("CREATE a//b")[1].startswith(b"NO [CANNOT]")


def test_subscriptions_and_extended_list(wire: Wire):
    wire.ok("CREATE Lists/a")
    wire.ok("SUBSCRIBE Lists/a")
    assert wire.ok('LSUB "" Lists*') == [b'* LSUB () "/" Lists/a']
    assert b'* LSUB (\\Noselect) "/" Lists' in wire.ok('LSUB "" %')
    assert wire.ok('LIST (SUBSCRIBED) "" Lists/*') == [b'* LIST (\\Subscribed \\HasNoChildren) "/" Lists/a']
    assert b'* LIST (\\HasChildren) "/" Lists ("CHILDINFO" ("SUBSCRIBED"))' in wire.ok(
        'LIST (SUBSCRIBED RECURSIVEMATCH) "" %'
    )
    lines = wire.ok('LIST "" (INBOX Lists/%) RETURN (SUBSCRIBED STATUS (MESSAGES))')
    assert b"* STATUS INBOX (MESSAGES 0)" in lines and b"* STATUS Lists/a (MESSAGES 0)" in lines
    wire.ok("UNSUBSCRIBE Lists/a")
    assert wire.ok('LSUB "" Lists*') == []


def test_status_counts(wire: Wire):
    wire.append("INBOX", MESSAGE)
    wire.append("INBOX", MESSAGE, "(\\Seen \\Deleted) ")
    (line,) = wire.ok("STATUS INBOX (MESSAGES UNSEEN UIDNEXT SIZE DELETED RECENT)")
    assert line == b"* STATUS INBOX (MESSAGES 2 UNSEEN 1 UIDNEXT 3 SIZE %d DELETED 1 RECENT 2)" % (
        2 * len(MESSAGE)
    )


def test_search_by_every_kind_of_key(wire: Wire):
    wire.append("INBOX", MESSAGE, '(\\Seen) "01-Feb-2024 23:59:59 +0000" ')
    other = MESSAGE.replace(b"Hello there", b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=").replace(
        b"Body text", b"Quite other words"
    )
    wire.append("INBOX", other, '(Work) "02-Feb-2024 00:00:01 +0000" ')
    wire.ok("SELECT INBOX")
    for keys, found in {
        "ALL": b" 1 2",
        "SEEN": b" 1",
        "UNSEEN": b" 2",
        "KEYWORD work": b" 2",
        "UNKEYWORD Work": b" 1",
        "SUBJECT hello": b" 1",
        'CHARSET UTF-8 SUBJECT "GR\u00dcSSE"': b" 2",
        "FROM bob": b" 1 2",
        "CC bob": b"",
        "BODY text": b" 1",
        "BODY hello": b"",
        "TEXT hello": b" 1",
        "HEADER Message-ID elsewhere": b" 1 2",
        'HEADER Message-ID ""': b" 1 2",
        'HEADER X-None ""': b"",
        "ON 1-Feb-2024": b" 1",
        "SINCE 2-Feb-2024": b" 2",
        "BEFORE 2-Feb-2024": b" 1",
        "SENTON 1-Jan-2024": b" 1 2",
        "SENTBEFORE 1-Jan-2024": b"",
        f"LARGER {len(MESSAGE)}": b" 2",
        f"SMALLER {len(MESSAGE) + 1}": b" 1",
        "OR SEEN KEYWORD work": b" 1 2",
        "NOT (SEEN)": b" 2",
        "2:*": b" 2",
        "UID 1 SEEN": b" 1",
        "YOUNGER 10": b"",
        "OLDER 10": b" 1 2",
        "RECENT": b" 1 2",
        "NEW": b" 2",
        "OLD": b"",
    }.items():
        assert wire.ok(f"SEARCH {keys}") == [b"* SEARCH" + found], keys
    (line,) = wire.ok("UID SEARCH RETURN (MIN MAX COUNT ALL) ALL")
    assert re.fullmatch(rb'\* ESEARCH \(TAG "t\d+"\) UID MIN 1 MAX 2 ALL 1:2 COUNT 2', line)
    assert wire.ok("SEARCH RETURN (SAVE) SEEN") == []
    assert wire.ok("FETCH $ UID") == [b"* 1 FETCH (UID 1)"]
    assert wire.ok("UID SEARCH UID $") == [b"* SEARCH 1"]


def test_search_finds_what_delivery_put_in_front(wire: Wire, appliance: Appliance, inbox: Inbox):
    appliance.deliver(inbox, MESSAGE, prefix=PREFIX)
    wire.ok("SELECT INBOX")
    assert wire.ok("SEARCH HEADER Return-Path bob@elsewhere") == [b"* SEARCH 1"]
    assert wire.ok("SEARCH TEXT delivered-to") == [b"* SEARCH 1"]
    assert wire.ok("SEARCH BODY delivered-to") == [b"* SEARCH"]


def test_condstore_and_qresync(wire: Wire, appliance: Appliance, inbox: Inbox):
    for _ in range(4):
        wire.append("INBOX", MESSAGE)
    lines = wire.ok("ENABLE QRESYNC")
    assert lines == [b"* ENABLED QRESYNC"]
    lines = wire.ok("SELECT INBOX")
    uidvalidity = numbers(next(line for line in lines if b"UIDVALIDITY" in line))[0]
    modseq = numbers(next(line for line in lines if b"HIGHESTMODSEQ" in line))[0]
    (line,) = wire.ok("STORE 2 (UNCHANGEDSINCE 100000) +FLAGS (\\Flagged)")
    assert line == b"* 2 FETCH (UID 2 FLAGS (\\Flagged \\Recent) MODSEQ (%d))" % (modseq + 1)
    _, completion = wire.command(f"STORE 2 (UNCHANGEDSINCE {modseq}) +FLAGS (\\Seen)")
    assert completion.startswith(b"OK [MODIFIED 2]")
    assert wire.ok(f"UID FETCH 1:* (FLAGS) (CHANGEDSINCE {modseq})") == [
        b"* 2 FETCH (UID 2 FLAGS (\\Flagged \\Recent) MODSEQ (%d))" % (modseq + 1)
    ]
    wire.ok("STORE 3 +FLAGS.SILENT (\\Deleted)")
    untagged, completion = wire.command("EXPUNGE")
    assert untagged == [b"* VANISHED 3"] and b"[HIGHESTMODSEQ" in completion
    again = Wire(appliance).login(inbox)
    again.ok("ENABLE QRESYNC")
    lines = again.ok(f"SELECT INBOX (QRESYNC ({uidvalidity} {modseq} 1:4))")
    assert b"* VANISHED (EARLIER) 3" in lines
    assert any(line.startswith(b"* 2 FETCH (UID 2 FLAGS (\\Flagged) MODSEQ (") for line in lines)
    assert again.ok(f"UID FETCH 1:* (FLAGS) (CHANGEDSINCE {modseq} VANISHED)")[0] == b"* VANISHED (EARLIER) 3"


def test_bad_commands_are_told_and_too_many_end_the_session(appliance: Appliance):
    client = Wire(appliance)
    for sent in (
        b"\r\n",
        b"x\r\n",
        b"x FROB\r\n",
        b"x LOGIN \xff y\r\n",
        b"x NO\0OP\r\n",
        b"x LOGIN {3+}\r\na\0b y\r\n",
    ):
        client.send(sent)
        assert b" BAD " in client.line()
    assert client.ok("NOOP") == []
    client.send(b"y NONSENSE\r\n" * 20)
    lines = []
    while line := client.line():
        lines.append(line)
    assert lines[-1] == b"* BYE Too many bad commands" and len(lines) == 21


def test_overlong_line_and_literal_are_refused_and_the_session_goes_on(wire: Wire):
    wire.send(b"x NOOP " + b"y" * 100_000 + b"\r\n")
    assert wire.answer(b"x")[1].startswith(b"BAD [TOOBIG]")
    wire.send(b"x LIST {1000000}\r\n")
    assert wire.answer(b"x")[1].startswith(b"BAD [TOOBIG]")
    wire.ok("NOOP")


def test_authentication_by_sasl(appliance: Appliance, inbox: Inbox):
    from base64 import b64encode

    plain = b64encode(f"\0{inbox.address}\0{inbox.password}".encode()).decode()
    assert Wire(appliance).command(f"AUTHENTICATE PLAIN {plain}")[1].startswith(b"OK [CAPABILITY")
    client = Wire(appliance)
    client.send(b"a AUTHENTICATE PLAIN\r\n")
    assert client.line() == b"+ "
    client.send(plain.encode() + b"\r\n")
    assert client.answer(b"a")[1].startswith(b"OK")
    client = Wire(appliance)
    client.send(b"a AUTHENTICATE LOGIN\r\n")
    assert client.line() == b"+ VXNlcm5hbWU6"
    client.send(b64encode(inbox.address.encode()) + b"\r\n")
    assert client.line() == b"+ UGFzc3dvcmQ6"
    client.send(b64encode(inbox.password.encode()) + b"\r\n")
    assert client.answer(b"a")[1].startswith(b"OK")
    client = Wire(appliance)
    client.send(b"a AUTHENTICATE PLAIN\r\n")
    client.line()
    client.send(b"*\r\n")
    assert client.answer(b"a")[1].startswith(b"BAD")
    assert client.command("AUTHENTICATE PLAIN !!!")[1].startswith(b"BAD")
    assert client.command("AUTHENTICATE GSSAPI")[1].startswith(b"NO")


def test_failed_logins_are_counted_and_end_the_connection(appliance: Appliance, inbox: Inbox):
    client = Wire(appliance)
    for _ in range(2):
        assert client.command(f"LOGIN {inbox.address} wrong")[1].startswith(b"NO [AUTHENTICATIONFAILED]")
    client.send(b"a LOGIN nobody@x.example wrong\r\n")
    assert client.line() == b"* BYE Too many failed logins"
    assert client.line() == b""


def test_starttls_then_login(appliance: Appliance, inbox: Inbox):
    from tests.imap.appliance import client_context

    client = Wire(appliance, tls=False)
    client.ok("STARTTLS")
    client.socket = client_context().wrap_socket(client.socket)
    assert b"STARTTLS" not in client.ok("CAPABILITY")[0]
    client.login(inbox)
    assert client.command("STARTTLS")[1].startswith(b"BAD")


def test_plaintext_behind_starttls_is_refused_and_never_done(appliance: Appliance):
    client = Wire(appliance, tls=False)
    client.send(b"a STARTTLS\r\nb NOOP\r\n")
    assert client.line().startswith(b"* BYE")
    assert client.line().startswith(b"a BAD")
    assert client.line() == b""


def test_pipelined_commands_are_answered_in_order(wire: Wire):
    wire.send(b"a NOOP\r\nb SELECT INBOX\r\nc FETCH 1:* FLAGS\r\nd LOGOUT\r\n")
    for tag in (b"a", b"b", b"c", b"d"):
        assert wire.answer(tag)[1].startswith(b"OK")


def test_deleted_mailbox_ends_other_sessions(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.ok("CREATE gone")
    other = Wire(appliance).login(inbox)
    other.ok("SELECT gone")
    wire.ok("SELECT gone")
    wire.ok("DELETE gone")
    wire.ok("NOOP")
    other.send(b"a NOOP\r\n")
    assert other.line() == b"* BYE The mailbox was deleted"
    assert other.line() == b""


def test_renamed_mailbox_stays_open_and_readable(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.ok("CREATE before")
    wire.append("before", MESSAGE)
    other = Wire(appliance).login(inbox)
    other.ok("SELECT before")
    wire.ok("RENAME before after")
    assert other.ok("FETCH 1 BODY.PEEK[TEXT]")[0].endswith(b"Body text.\r\n)")


@pytest.mark.parametrize(
    "command", ["SELECT x", 'LIST "" *', "FETCH 1 FLAGS", "APPEND INBOX {3}", "IDLE", "ENABLE X"]
)
def test_commands_before_login_are_refused(appliance: Appliance, command: str):
    client = Wire(appliance)
    assert client.command(command)[1].startswith(b"BAD Log in first")


def test_what_foreign_programs_do_in_the_directory_is_noticed(wire: Wire, appliance: Appliance, inbox: Inbox):
    directory = appliance.store.maildir.ensure(inbox.mailbox_id, "INBOX")
    (directory / "new" / "1700000000.foreign.host").write_bytes(b"Subject: foreign\n\nhello\n")
    wire.ok("SELECT INBOX")
    assert wire.ok("FETCH 1 BODY.PEEK[]")[0].endswith(b"Subject: foreign\r\n\r\nhello\r\n)")
    wire.send(b"i IDLE\r\n")
    wire.line()
    (directory / "new" / "1700000001.foreign.host").write_bytes(b"Subject: second\n\nhello\n")
    assert wire.line() == b"* 2 EXISTS"
    wire.send(b"DONE\r\n")
    wire.answer(b"i")


def test_revoked_app_password_ends_its_sessions(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.ok("SELECT INBOX")
    other = Wire(appliance).login(appliance.new_inbox())

    def revoke(connection: Any) -> None:
        (credential,) = accounts.credentials(connection, mailbox_id=inbox.mailbox_id)
        accounts.revoke_credential(
            connection,
            organization_id=inbox.organization_id,
            credential_id=credential.id,
            at=appliance.clock.now(),
        )

    appliance.store.database.write(revoke)
    assert wire.line() == b"* BYE This login is no longer valid"
    assert wire.line() == b""
    other.ok("NOOP")


def test_key_without_the_right_to_delete_reads_only(appliance: Appliance, inbox: Inbox):
    secret, prefix, digest = new_key()
    appliance.store.database.write(
        lambda c: accounts.add_api_key(
            c,
            organization_id=inbox.organization_id,
            mailbox_id=inbox.mailbox_id,
            name="agent",
            prefix=prefix,
            key_hash=digest,
            scopes=frozenset({"message:read"}),
            expires_at=None,
            at=appliance.clock.now(),
        )
    )
    appliance.deliver(inbox, MESSAGE)
    client = Wire(appliance)
    client.ok(f"LOGIN {inbox.address} {secret}")
    assert client.command("SELECT INBOX")[1].startswith(b"OK [READ-ONLY]")
    assert client.ok("FETCH 1 BODY[TEXT]")[0].endswith(b"Body text.\r\n)")
    assert client.command("STORE 1 FLAGS (\\Seen)")[1].startswith(b"NO [READ-ONLY]")
    for command in ("CREATE x", "DELETE Sent", "RENAME Sent x", "SUBSCRIBE Sent", "COPY 1 Sent"):
        assert client.command(command)[1].startswith(b"NO [NOPERM]"), command
    assert client.append("INBOX", MESSAGE).startswith(b"NO [NOPERM]")


def test_append_over_quota_is_refused(appliance: Appliance):
    inbox = appliance.new_inbox(quota_octets=1000)
    client = Wire(appliance).login(inbox)
    assert client.append("INBOX", MESSAGE).startswith(b"OK")
    assert client.append("INBOX", b"Subject: x\r\n\r\n" + b"y" * 1000).startswith(b"NO [OVERQUOTA]")
