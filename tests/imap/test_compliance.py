"""What Dovecot's scripted tests found wrong once, each as a test of its own."""

from __future__ import annotations

import re

from tests.imap.appliance import Appliance, Inbox, Wire

MESSAGE = b"From: ann@example.org\r\nSubject: one\r\n\r\nBody text.\r\n"


def test_subscription_outlives_its_mailbox(wire: Wire):
    for name in ("Lists/gone", "Lists/kept"):
        wire.ok(f"CREATE {name}")
        wire.ok(f"SUBSCRIBE {name}")
    wire.ok("DELETE Lists/gone")
    assert wire.ok('LIST "" Lists/*') == [b'* LIST (\\HasNoChildren) "/" Lists/kept']
    assert wire.ok('LIST (SUBSCRIBED) "" Lists/*') == [
        b'* LIST (\\Subscribed \\NonExistent \\HasNoChildren) "/" Lists/gone',
        b'* LIST (\\Subscribed \\HasNoChildren) "/" Lists/kept',
    ]
    assert b'* LSUB () "/" Lists/gone' in wire.ok('LSUB "" Lists/*')
    wire.ok("UNSUBSCRIBE Lists/gone")
    assert wire.ok('LSUB "" Lists/*') == [b'* LSUB () "/" Lists/kept']
    assert wire.command("UNSUBSCRIBE Lists/gone")[1].startswith(b"NO")
    assert wire.command("SUBSCRIBE Lists/gone")[1].startswith(b"NO")


def test_mailbox_made_anew_is_subscribed_as_its_name_was(wire: Wire):
    wire.ok("CREATE Again")
    wire.ok("SUBSCRIBE Again")
    wire.ok("DELETE Again")
    wire.ok("CREATE Again")
    assert wire.ok('LIST (SUBSCRIBED) "" Again') == [b'* LIST (\\Subscribed \\HasNoChildren) "/" Again']
    wire.ok("UNSUBSCRIBE Again")
    assert wire.ok('LSUB "" Again') == []


def test_parent_named_beside_its_subscribed_child_is_not_told_for_the_child(wire: Wire):
    wire.ok("CREATE a/b")
    wire.ok("SUBSCRIBE a/b")
    parent = b'* LIST (\\HasChildren) "/" a ("CHILDINFO" ("SUBSCRIBED"))'
    child = b'* LIST (\\Subscribed \\HasNoChildren) "/" a/b'
    assert wire.ok('LIST (SUBSCRIBED RECURSIVEMATCH) "" (a)') == [parent]
    assert wire.ok('LIST (SUBSCRIBED RECURSIVEMATCH) "" a*') == [parent, child]
    assert wire.ok('LIST (SUBSCRIBED RECURSIVEMATCH) "" (a a/b)') == [child]


def test_pattern_that_is_no_modified_utf7_lists_nothing(wire: Wire):
    assert wire.ok('LIST "" !#$$&\'+,-.0123456789:;<=>?@^_`|[}%*') == []
    assert wire.ok('LSUB "" a&b*') == []


def test_id_of_thirty_long_fields_is_taken_before_the_login(appliance: Appliance):
    client = Wire(appliance)
    fields = " ".join(f'"name{number}" "{"x" * 1024}"' for number in range(30))
    assert any(line.startswith(b"* ID") for line in client.ok(f"ID ({fields})"))


def test_message_moves_to_its_own_mailbox_under_a_new_uid(wire: Wire):
    for _ in range(3):
        wire.append("INBOX", MESSAGE)
    wire.ok("SELECT INBOX")
    untagged, completion = wire.command("MOVE 1 INBOX")
    assert completion.startswith(b"OK")
    assert re.match(rb"\* OK \[COPYUID \d+ 1 4\]", untagged[0])
    assert b"* 1 EXPUNGE" in untagged and b"* 3 EXISTS" in untagged
    assert wire.ok("FETCH 1:* UID") == [
        b"* 1 FETCH (UID 2)",
        b"* 2 FETCH (UID 3)",
        b"* 3 FETCH (UID 4)",
    ]
    assert wire.ok("FETCH 3 BODY.PEEK[TEXT]")[0].endswith(b"Body text.\r\n)")


def test_address_with_comments_is_found_by_its_plain_form(wire: Wire):
    message = b"From: <ann (a comment)@ (another) example.org>\r\nSubject: x\r\n\r\nBody\r\n"
    wire.append("INBOX", message)
    wire.ok("SELECT INBOX")
    assert wire.ok("SEARCH FROM ann@example.org") == [b"* SEARCH 1"]
    assert wire.ok("SEARCH FROM comment") == [b"* SEARCH 1"]
    assert wire.ok("SEARCH TO ann@example.org") == [b"* SEARCH"]


def test_keyword_is_defined_before_it_is_used(wire: Wire, appliance: Appliance, inbox: Inbox):
    wire.append("INBOX", MESSAGE)
    wire.ok("SELECT INBOX")
    lines = wire.ok("STORE 1 +FLAGS ($new)")
    assert b"$new" in lines[0] and lines[0].startswith(b"* FLAGS (")
    assert lines[1] == b"* 1 FETCH (UID 1 FLAGS ($new \\Recent))"
    assert len(lines) == 2
    other = Wire(appliance).login(inbox)
    other.ok("SELECT INBOX")
    wire.ok("STORE 1 +FLAGS.SILENT ($newer)")
    lines = other.ok("FETCH 1 FLAGS")
    defined = next(place for place, line in enumerate(lines) if line.startswith(b"* FLAGS ("))
    assert all(b"$newer" not in line for line in lines[:defined])
