from server.mail.address_list import MAX_ADDRESSES, HeaderAddress
from server.mail.envelope import read_envelope


def test_fields_are_given_undecoded():
    envelope = read_envelope(
        b"Date: Sat, 01 Feb 2007 01:02:03 +0200\r\nSubject: =?utf-8?q?x?=\r\n folded\r\n"
        b"From: A <a@b>\r\nSender: s@b\r\nReply-To: r@b\r\nTo: t@b, u@b\r\nCc: c@b\r\nBcc: d@b\r\n"
        b"In-Reply-To: <1@x>\r\nMessage-Id: <2@x>\r\n\r\n"
    )
    assert envelope.date == b"Sat, 01 Feb 2007 01:02:03 +0200"
    assert envelope.subject == b"=?utf-8?q?x?= folded"
    assert envelope.from_ == (HeaderAddress(b"A", None, b"a", b"b"),)
    assert [[a.local for a in field] for field in (envelope.sender, envelope.reply_to, envelope.to)] == [
        [b"s"],
        [b"r"],
        [b"t", b"u"],
    ]
    assert [[a.local for a in field] for field in (envelope.cc, envelope.bcc)] == [[b"c"], [b"d"]]
    assert (envelope.in_reply_to, envelope.message_id) == (b"<1@x>", b"<2@x>")


def test_sender_and_reply_to_are_from_where_absent_or_empty():
    for more in (b"", b"Sender: \r\nReply-To:\r\n"):
        envelope = read_envelope(b"From: a@b\r\n" + more + b"\r\n")
        assert envelope.sender == envelope.reply_to == envelope.from_ != ()


def test_absent_fields_are_none_and_empty():
    envelope = read_envelope(b"\r\n")
    assert (envelope.date, envelope.subject, envelope.in_reply_to, envelope.message_id) == (None,) * 4
    assert (envelope.from_, envelope.sender, envelope.to, envelope.bcc) == ((),) * 4


def test_empty_subject_is_not_an_absent_one():
    assert read_envelope(b"Subject:\r\n\r\n").subject == b""


def test_repeated_lists_add_up_within_the_limit():
    assert [a.local for a in read_envelope(b"To: a@b\r\nTo: c@d\r\n\r\n").to] == [b"a", b"c"]
    assert len(read_envelope(b"To: a@b,c@d\r\n" * 20_000).to) <= MAX_ADDRESSES
