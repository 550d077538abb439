"""Replies on the wire: lines, codes, characters."""

from hypothesis import given
from hypothesis import strategies as st

from server.refusal import Refusal
from server.smtp import door, replies
from server.smtp.replies import Repertoire, reply


def test_single_line():
    assert reply(250, "2.1.0", "Sender ok") == b"250 2.1.0 Sender ok\r\n"


def test_every_line_has_both_codes():
    assert reply(550, "5.7.1", "No", "never") == b"550-5.7.1 No\r\n550 5.7.1 never\r\n"


def test_without_enhanced_code():
    assert reply(354, "", "Go") == b"354 Go\r\n"


def test_empty_text_leaves_no_trailing_space():
    assert reply(250, "2.0.0", "") == b"250 2.0.0\r\n"


def test_line_ends_cannot_be_smuggled_into_a_reply():
    assert reply(550, "5.7.1", "a\r\n250 b\0c") == b"550 5.7.1 a  250 b c\r\n"


def test_refusal_with_several_lines():
    refusal = Refusal(550, "5.7.1", "first\nsecond\r\nthird")
    assert replies.of_refusal(refusal) == b"550-5.7.1 first\r\n550-5.7.1 second\r\n550 5.7.1 third\r\n"


def test_enhanced_class_follows_the_code():
    assert replies.of_refusal(Refusal(450, "5.7.1", "later")) == b"450 4.0.0 later\r\n"
    assert replies.of_refusal(Refusal(450, "", "later")) == b"450 4.0.0 later\r\n"


def test_refusal_that_refuses_nothing_is_our_fault():
    assert replies.of_refusal(Refusal(250, "2.0.0", "fine")) == replies.BROKEN


def test_ehlo_and_helo_refusals_have_no_enhanced_code():
    assert replies.bare(Refusal(501, "5.5.4", "Syntax")) == b"501 Syntax\r\n"


def test_text_outside_ascii_needs_utf8():
    assert reply(550, "5.1.1", "jörg") == b"550 5.1.1 j?rg\r\n"
    assert reply(550, "5.1.1", "jörg", repertoire=Repertoire.UTF8) == "550 5.1.1 jörg\r\n".encode()


def test_taken_names_every_message():
    assert replies.taken(("msg_1",)) == b"250 2.0.0 Ok: msg_1\r\n"
    assert replies.taken(("msg_1", "msg_2")) == b"250 2.0.0 Ok: msg_1 msg_2\r\n"


@given(st.text(max_size=3000), st.sampled_from(Repertoire))
def test_no_line_exceeds_512_octets_and_each_is_well_formed(text, repertoire):
    lines = reply(550, "5.7.1", text, repertoire=repertoire).split(b"\r\n")
    assert lines.pop() == b""
    for line in lines:
        assert len(line) <= 510
        line.decode(repertoire.value)
        assert line[:9].rstrip() == (b"550-5.7.1" if line is not lines[-1] else b"550 5.7.1")


def test_ehlo_announces_what_the_state_offers():
    def words(which, **state):
        return " ".join(door.keywords(which, max_octets=1000, max_recipients=100, **state))

    mx = words(door.MX, tls_offered=True, tls_active=False)
    assert "STARTTLS" in mx
    assert "AUTH" not in words(door.MX, tls_offered=True, tls_active=True)
    assert "AUTH" not in words(door.SUBMISSION, tls_offered=True, tls_active=False)
    assert "AUTH SCRAM-SHA-256 OAUTHBEARER PLAIN LOGIN" in words(
        door.SUBMISSION, tls_offered=True, tls_active=True
    )
    assert "STARTTLS" not in words(door.SUBMISSION, tls_offered=True, tls_active=True)
    assert "STARTTLS" not in words(door.MX, tls_offered=False, tls_active=False)
    for word in ("PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"):
        assert word in mx
    assert "LIMITS RCPTMAX=100" in mx
