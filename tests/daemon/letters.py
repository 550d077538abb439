"""Small messages for tests: made, put on the wire, read back."""

import email
import email.policy
from email.message import EmailMessage

DOMAIN = "agents.test"


def parsed(content: bytes) -> EmailMessage:
    return email.message_from_bytes(content, policy=email.policy.default)


def message(subject: str, body: str = "Hello.\n", **fields: str) -> EmailMessage:
    """A small message; fields: others of its header, '_' for '-'."""
    made = EmailMessage()
    for name, value in {"From": "someone@partner.test", "To": f"alice@{DOMAIN}", **fields}.items():
        made[name.replace("_", "-")] = value
    made["Subject"] = subject
    made.set_content(body)
    return made


def wire(made: EmailMessage) -> bytes:
    """A message's octets with CRLF, as SMTP has them."""
    return made.as_bytes(policy=email.policy.SMTP)


def queued_id(reply: bytes | tuple[int, bytes]) -> str:
    """The message id that a 250 names."""
    text = (reply if isinstance(reply, bytes) else reply[1]).decode()
    return next(word.strip(".;,") for word in text.split() if word.startswith("msg_"))
