"""The two failures that cross module borders: one for a peer, one for us.

A `Refusal` is an answer the peer is owed: reply code, enhanced status code and
a sentence that reveals no configuration (RFC 5321 4.2, RFC 3463). `Broken` is
our own fault; it becomes 451 4.3.0 in the one place that answers the peer.
"""


class Refusal(Exception):
    """A command or message that is refused.

    code: SMTP reply code. enhanced: RFC 3463 status. public: sentence for the
    peer. cause: what the log says beside it, never sent.
    """

    def __init__(self, code: int, enhanced: str, public: str, cause: str = "") -> None:
        super().__init__(f"{code} {enhanced} {public}")
        self.code = code
        self.enhanced = enhanced
        self.public = public
        self.cause = cause

    @property
    def temporary(self) -> bool:
        """Whether the peer should try again (4yz)."""
        return 400 <= self.code < 500


class Broken(Exception):
    """The appliance could not do its part; the text is for the log alone."""
