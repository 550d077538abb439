"""The client's dialogue, driven by hand."""

from collections.abc import Sequence

import pytest

from server.smtp.client_machine import Dialect, Machine, State, TlsUse, Transaction
from storage.records import Recipient

FULL = (
    b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 5000\r\n250-8BITMIME\r\n"
    b"250-SMTPUTF8\r\n250-DSN\r\n250 STARTTLS\r\n"
)
BARE = b"250 mx.test\r\n"


def ready(ehlo: bytes = FULL, *, dialect: Dialect = Dialect.SMTP, tls: TlsUse = TlsUse.NONE) -> Machine:
    machine = Machine(hostname="us.test", dialect=dialect, tls=tls)
    machine.receive(b"220 MX.test hello\r\n")
    machine.receive(ehlo)
    machine.take()
    return machine


def letter(*recipients: str, octets: int = 100, **given: object) -> Transaction:
    parties = tuple(Recipient(one) for one in recipients or ("a@peer.test",))
    return Transaction("s@us.test", parties, octets, **given)  # type: ignore[arg-type]  # test's keywords


def codes(machine: Machine) -> Sequence[object]:
    return [(one.phase, one.reply.code if one.reply else None) for one in machine.answers]


def test_the_envelope_goes_in_one_piece_where_pipelining_is_offered() -> None:
    machine = ready()
    machine.begin(letter("a@peer.test", "b@peer.test"))
    assert machine.take() == (
        b"MAIL FROM:<s@us.test> SIZE=100\r\nRCPT TO:<a@peer.test>\r\nRCPT TO:<b@peer.test>\r\nDATA\r\n"
    )
    machine.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert machine.state is State.SEND
    assert machine.accepted == (0,)
    machine.sending()
    machine.content_sent()
    machine.receive(b"250 2.0.0 queued\r\n")
    assert machine.state is State.READY
    assert codes(machine) == [("final", 250), ("rcpt", 550)]


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    machine = ready(BARE)
    machine.begin(letter("a@peer.test", "b@peer.test"))
    sent = [machine.take()]
    for _ in range(3):
        machine.receive(b"250 ok\r\n")
        sent.append(machine.take())
    assert sent == [
        b"MAIL FROM:<s@us.test>\r\n",
        b"RCPT TO:<a@peer.test>\r\n",
        b"RCPT TO:<b@peer.test>\r\n",
        b"DATA\r\n",
    ]


def test_without_pipelining_nobody_taken_means_no_data() -> None:
    machine = ready(BARE)
    machine.begin(letter())
    machine.receive(b"250 ok\r\n")
    machine.take()
    machine.receive(b"450 4.2.1 later\r\n")
    assert machine.take() == b""
    assert machine.state is State.READY
    machine.begin(letter())
    assert machine.take() == b"RSET\r\n"


def test_data_taken_although_nobody_was_is_ended_by_an_empty_message() -> None:
    machine = ready()
    machine.begin(letter())
    machine.take()
    machine.receive(b"250 ok\r\n550 no\r\n354 go\r\n")
    assert machine.take() == b".\r\n"
    machine.receive(b"250 thanks for nothing\r\n")
    assert machine.state is State.READY
    assert codes(machine) == [("rcpt", 550)]
    machine.begin(letter())
    assert machine.take().startswith(b"RSET\r\nMAIL")


def test_a_sender_refused_stands_for_every_recipient() -> None:
    for ehlo in (FULL, BARE):
        machine = ready(ehlo)
        machine.begin(letter("a@peer.test", "b@peer.test"))
        machine.receive(b"550 5.7.1 go away\r\n")
        if ehlo is FULL:
            machine.receive(b"503 mail first\r\n503 mail first\r\n503 mail first\r\n")
        assert machine.state is State.READY
        assert codes(machine) == [("mail", 550), ("mail", 550)]


def test_recipients_taken_after_a_refused_sender_get_no_content() -> None:
    machine = ready()
    machine.begin(letter())
    machine.receive(b"451 later\r\n250 ok\r\n354 go\r\n")
    assert machine.state is State.FINAL
    assert codes(machine) == [("mail", 451)]


def test_data_refused_is_the_answer_of_those_who_were_taken() -> None:
    machine = ready()
    machine.begin(letter("a@peer.test", "b@peer.test"))
    machine.receive(b"250 ok\r\n250 ok\r\n551 no\r\n451 4.3.0 not now\r\n")
    assert machine.state is State.READY
    assert codes(machine) == [("data", 451), ("rcpt", 551)]


def test_lmtp_answers_each_recipient_after_the_dot() -> None:
    machine = Machine(hostname="us.test", dialect=Dialect.LMTP, tls=TlsUse.NONE)
    machine.receive(b"220 mx\r\n")
    assert machine.take() == b"LHLO us.test\r\n"
    machine.receive(b"250-mx\r\n250 PIPELINING\r\n")
    machine.begin(letter("a@peer.test", "b@peer.test", "c@peer.test"))
    machine.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
    machine.sending()
    machine.content_sent()
    machine.receive(b"250 stored\r\n")
    assert machine.state is State.FINAL
    machine.receive(b"452 4.2.2 full\r\n")
    assert machine.state is State.READY
    assert codes(machine) == [("final", 250), ("rcpt", 550), ("final", 452)]


def test_lmtp_replies_read_before_a_loss_stand() -> None:
    machine = ready(b"250-mx\r\n250 PIPELINING\r\n", dialect=Dialect.LMTP)
    machine.begin(letter("a@peer.test", "b@peer.test"))
    machine.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    machine.sending()
    machine.content_sent()
    machine.receive(b"250 stored\r\n")
    machine.fail("the connection was lost")
    assert codes(machine) == [("final", 250), ("final", None)]


def test_421_closes_whatever_was_asked() -> None:
    machine = ready()
    machine.begin(letter("a@peer.test", "b@peer.test"))
    machine.receive(b"250 ok\r\n250 ok\r\n421 4.3.2 shutting down\r\n354 go\r\n")
    assert machine.state is State.CLOSED
    assert codes(machine) == [("rcpt", 421), ("rcpt", 421)]


def test_a_verdict_before_the_final_dot_stands_and_ends_the_connection() -> None:
    machine = ready()
    machine.begin(letter())
    machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.sending()
    machine.receive(b"550 5.7.1 spam\r\n")
    assert machine.state is State.CLOSED
    assert codes(machine) == [("data", 550)]
    machine.content_sent()
    assert codes(machine) == [("data", 550)]


def test_a_good_reply_before_the_final_dot_is_not_believed() -> None:
    machine = ready()
    machine.begin(letter())
    machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n")
    assert machine.state is State.CLOSED
    assert codes(machine) == [("data", None)]


def test_a_reply_that_nothing_asked_for_ends_the_connection() -> None:
    machine = ready()
    machine.receive(b"250 what\r\n")
    assert machine.state is State.CLOSED


@pytest.mark.parametrize("reply", [b"554 no\r\n", b"421 busy\r\n", b"hello\r\n", b"250 odd\r\n"])
def test_a_greeting_that_is_none_fails_in_the_connect_phase(reply: bytes) -> None:
    machine = Machine(hostname="us.test", dialect=Dialect.SMTP, tls=TlsUse.NONE)
    machine.receive(reply)
    assert machine.state is State.CLOSED
    assert machine.failure is not None
    assert machine.failure.phase == "connect"


def test_a_server_without_ehlo_is_greeted_with_helo() -> None:
    machine = Machine(hostname="us.test", dialect=Dialect.SMTP, tls=TlsUse.OPPORTUNISTIC)
    machine.receive(b"220 old\r\n")
    machine.take()
    machine.receive(b"502 what\r\n")
    assert machine.take() == b"HELO us.test\r\n"
    machine.receive(b"250 old\r\n")
    assert machine.state is State.READY


def test_starttls_forgets_what_was_announced_in_clear() -> None:
    machine = ready(tls=TlsUse.OPPORTUNISTIC)
    assert machine.state is State.STARTTLS
    machine.receive(b"220 go\r\n")
    assert machine.state is State.HANDSHAKE
    machine.secured()
    assert "DSN" not in machine.extensions
    assert machine.take() == b"EHLO us.test\r\n"
    machine.receive(BARE)
    assert machine.state is State.READY
    assert machine.secure


@pytest.mark.parametrize("extra", [b"250 injected\r\n", b"250-in", b"\x16", b"\r"])
def test_octets_in_clear_behind_starttls_end_the_connection(extra: bytes) -> None:
    for together in (True, False):
        machine = ready(tls=TlsUse.OPPORTUNISTIC)
        if together:
            machine.receive(b"220 go\r\n" + extra)
        else:
            machine.receive(b"220 go\r\n")
            machine.receive(extra)
        assert machine.state is State.CLOSED
        assert machine.failure is not None
        assert machine.failure.phase == "tls"
        assert machine.failure.reply is None


def test_starttls_refused_fails_in_the_tls_phase() -> None:
    machine = ready(tls=TlsUse.OPPORTUNISTIC)
    machine.receive(b"454 4.7.0 no TLS now\r\n")
    assert machine.failure is not None
    assert machine.failure.phase == "tls"


@pytest.mark.parametrize(
    ("ehlo", "transaction", "enhanced"),
    [
        (FULL, letter(octets=5001), "5.3.4"),
        (BARE, letter(eight_bit=True), "5.6.3"),
        (BARE, letter(utf8_header=True, eight_bit=True), "5.6.7"),
        (BARE, letter("\u00fc@peer.test"), "5.6.7"),
        (FULL, letter("a\r\nDATA@peer.test"), "5.1.3"),
        (FULL, letter("a@peer.test> X=<b@peer.test"), "5.1.3"),
        (FULL, letter(envid="a b"), "5.1.3"),
        (FULL, letter(ret="HDRS\r\nRSET"), "5.1.3"),
    ],
)
def test_what_the_server_cannot_take_is_never_begun(
    ehlo: bytes, transaction: Transaction, enhanced: str
) -> None:
    machine = ready(ehlo)
    machine.begin(transaction)
    assert machine.take() == b""
    assert machine.state is State.READY
    (answer,) = machine.answers
    assert answer.phase == "policy"
    assert answer.reply is not None
    assert answer.reply.enhanced == enhanced


def test_parameters_go_only_to_those_who_know_them() -> None:
    recipient = Recipient("\u00fc@peer.test", frozenset({"SUCCESS", "FAILURE"}), "rfc822;x+40peer.test")
    transaction = Transaction(None, (recipient,), 9, eight_bit=True, ret="HDRS", envid="id+2B1")
    machine = ready()
    machine.begin(transaction)
    assert machine.take().decode() == (
        "MAIL FROM:<> SIZE=9 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+2B1\r\n"
        "RCPT TO:<\u00fc@peer.test> NOTIFY=FAILURE,SUCCESS ORCPT=rfc822;x+40peer.test\r\nDATA\r\n"
    )
    machine = ready(b"250-mx\r\n250 PIPELINING\r\n")
    plain = Recipient("a@peer.test", frozenset({"NEVER"}), "rfc822;x")
    machine.begin(Transaction(None, (plain,), 9, ret="HDRS", envid="1"))
    assert machine.take() == b"MAIL FROM:<>\r\nRCPT TO:<a@peer.test>\r\nDATA\r\n"


def test_a_dialogue_split_at_every_octet_ends_alike() -> None:
    stream = b"250 ok\r\n250-a\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n"
    for cut in range(1, len(stream)):
        machine = ready()
        machine.begin(letter("a@peer.test", "b@peer.test"))
        machine.receive(stream[:cut])
        machine.receive(stream[cut:])
        assert machine.state is State.SEND
        assert machine.accepted == (0,)


def test_quit_is_said_only_between_transactions() -> None:
    machine = ready()
    machine.quit()
    assert machine.take() == b"QUIT\r\n"
    machine = ready()
    machine.begin(letter())
    machine.take()
    machine.quit()
    assert machine.take() == b""
