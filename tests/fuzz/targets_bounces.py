"""Fuzz target of bounces: any octets in, an invariant out.

`check_bounce`: a message is no bounce, or one with bounded, storable recipients, each once and with a
class and blame that belong together; line ends make no difference to whether it is one; every signed
return path that comes out of a text was put in.
"""

from server.mail.bounce_class import Blame, BounceClass, classify
from server.mail.bounce_reader import MAX_DIAGNOSTIC_CHARACTERS, MAX_RECIPIENTS, Bounce, read_bounce
from server.return_tokens import ReturnTokens

TOKENS = ReturnTokens(bytes(32), lifetime=1 << 62)
_BLAMED = {
    BounceClass.HARD: {Blame.RECIPIENT},
    BounceClass.MAILBOX_FULL: {Blame.RECIPIENT},
    BounceClass.SOFT: {Blame.NOBODY, Blame.RECIPIENT},
    BounceClass.BLOCK: {Blame.OURS},
    BounceClass.CONTENT: {Blame.CONTENT},
    BounceClass.POLICY: {Blame.CONTENT},
    BounceClass.UNKNOWN: {Blame.NOBODY},
}


def check_bounce(data: bytes) -> None:
    """Any octets are no bounce or a bounded one; a text is classified whatever it says."""
    found = read_bounce(data)
    if found is not None:
        _check_found(found)
    text = data.decode("utf-8", "replace")
    asked = ((550, "", "rcpt"), (0, "5.1.1", ""), (452, "4.2.2", "mail"), (999, "x", "?"))
    for code, enhanced, phase in asked:
        judged = classify(code, enhanced, text, phase=phase)
        assert judged.blame in _BLAMED[judged.bounce_class]
    assert TOKENS.delivery(text, now=0) is None
    assert TOKENS.wish(text) is None


def _check_found(found: Bounce) -> None:
    assert found.form in ("dsn", "text")
    assert found.failures
    assert len(found.failures) <= MAX_RECIPIENTS
    names = [one.recipient.lower() for one in found.failures]
    assert len(set(names)) == len(names)
    for one in found.failures:
        assert one.action in ("failed", "delayed")
        assert one.recipient
        assert len(one.recipient) <= 600
        assert "\0" not in one.recipient
        one.recipient.encode()
        assert len(one.diagnostic) <= MAX_DIAGNOSTIC_CHARACTERS
        assert one.judged.blame in _BLAMED[one.judged.bounce_class]
        assert one.code == 0 or 400 <= one.code < 600
