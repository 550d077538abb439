"""Notices of failure in words, of servers that write no RFC 3464: qmail, Exim, Exchange, Notes and many more.

Owns telling such a notice from ordinary mail (its sender or subject says so, and its words tell of a
failure), and finding whom it is about: by marks that only a notice has, then by who the returned
message went to. Looks at the words before the returned message alone. Pure; every pattern is
applied to one bounded line.
"""

import re
from dataclasses import dataclass, field

from server.mail.arf import Returned, returned_of
from server.mail.header import Header, decode
from server.mail.html import html_to_text
from server.mail.structure import Part
from server.mail.text import part_text

MAX_CHARACTERS = 65_536
MAX_LINES = 2_000
MAX_LINE_CHARACTERS = 1_000
MAX_ADDRESSES = 200
ABOUT_LINES = 12

_ADDRESS = re.compile(
    r"(?<![\w.+=/@-])([\w.!#$%&'*+/=?^`{|}~-]{1,128}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,10}|"
    r"\"[^\"\n@]{1,64}\"@[\w.-]{3,255})"
)
_NOTIFIERS = re.compile(
    r"mailer[-_. ]?(?:daemon|server)|\bdaemon\b|postmaster|mail delivery|delivery (?:sub)?system|"
    r"mail ?administrator|"
    r"mdaemon|mail ?router|system administrator|systemadministrator|administrateur|bounce|mail system|"
    r"majordomo|"
    r"microsoftexchange|failure|no-?reply[^@]{0,20}@.{0,40}(?:bounce|mail)|mailsystem|undeliver|"
    r"mail ?server|email ?server|"
    r"\bmta\b|\bsmtp\b|message transfer|mail ?sweeper|mailerdaemon|mail-?master|listserv|\broot@|"
    r"systems? operator|nobody@",
    re.IGNORECASE,
)
_SUBJECTS = re.compile(
    r"undeliver|un-?deliverable|nondeliver|non-?deliver|not delivered|deliver\w* (?:status|fail|err|"
    r"report|notif|problem|"
    r"has|incomplete|unsuccess|attempt|delay|subsystem)|"
    r"fail(?:ure|ed)[ :]*(?:notice|notif|deliver|mail|to deliver|delivery|message)?|returned (?:mail|"
    r"to sender|message)|mail (?:system )?"
    r"(?:could not|error|fail|delay|rejected|return|not|undeliv)|returned|unknown (?:user|address|"
    r"recipient)|user unknown|bounce|"
    r"mail delivery|could not be (?:delivered|sent)|couldn't be delivered|can't be delivered|"
    r"warning: (?:could not send|message)|delivery|unzustellbar|zustellung|fehler|nicht zugestellt|"
    r"non remis|non distribu|remise|no se (?:puede|ha)|devuelto|no entregad|rapporto|mancato recapito|"
    r"não entreg|"
    r"nao entreg|error (?:sending|in|de)|mail error|rejected|blocked|bloqu|refused|"
    r"problem|не достав|доставк|недостав|エラー|配信|退信|投递|returning|message status|disk quota|"
    r"over quota|mailbox (?:is )?full|mdaemon|"
    r"message you sent|invalid (?:address|recipient)|wrong address|nondelivery|smtp error|expired|"
    r"undelivered",
    re.IGNORECASE,
)
_FAILURES = re.compile(
    r"not (?:be )?(?:deliver|sent|reach|complet|found|exist)|undeliver|non-?deliver|could ?n[o']t|"
    r"can ?n[o']t|unable to|failed|failure|fatal|"
    r"permanent|error|unknown|no such|rejected|returned|bounce|refused|denied|does(?:n't| not)|"
    r"over ?quota|quota|mailbox|"
    r"wasn't|was not|isn't|invalid|no longer|delayed|delay|warning|problem|expired|timed out|"
    r"nicht|unbekannt|fehler|impossible|inconnu|non remis|échec|echec|non distribu|no se|desconocid|"
    r"devuelt|sconosciut|impossibile|n[aã]o|"
    r"не |невозмож|ошибк|存在|失敗|エラー|配送|届|退信|无法|失败|[45][0-9][0-9][ -]|\b[45]\.[0-9]\.[0-9]",
    re.IGNORECASE,
)
_DELAYS = re.compile(
    r"delay|warning|not yet been|still (?:being )?(?:try|attempt|queued)|will (?:continue|keep|"
    r"be retried|retry)|"
    r"do not need to (?:re)?send|need not (?:re)?send|no action is required|will try|temporarily|deferred",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"permanent|fatal|giving up|given up|gave up|undeliverable|final|no further|will not be|"
    r"(?:could|can) ?n[o']t be delivered|returned (?:to|mail)|failed permanently|unable to deliver",
    re.IGNORECASE,
)
# Where what came back begins.
_RETURNED_MARK = re.compile(
    r"^[\s>]*-{2,}.{0,60}(?:original|copy of|returned|message (?:header|text|follow|sent)|"
    r"below this line|header(?:s)? (?:of|follow)|"
    r"unsent|forwarded|begin|enclosed|undelivered|rejected message|failed message|included|your message)|"
    r"^[\s>]*(?:the header|header(?:s)? of|below (?:this line )?is (?:a|the)|"
    r"the (?:original )?message (?:header|follow|headers)|"
    r"copy of (?:your|the)|original message|received: |return-path: |>?received: from |message header|"
    r"your (?:original )?message (?:follows|header)|following is a copy|here is a copy|the first \d+ lines|"
    r"-+ ?original message|-+ ?returned message|text of (?:your )?message|forwarded message|attached is|"
    r"the text you sent|message contents|------ this is a copy|the returned message)",
    re.IGNORECASE,
)
_TRANSCRIPT = re.compile(r"-+ ?(?:transcript of|the following addresses|reason for)", re.IGNORECASE)
_ALONE = re.compile(
    r"^[\s>*\-•]*<?(?:mailto:|smtp:|to:)?\s*<?([^\s<>:,;()]{1,128}@[^\s<>:,;()]{1,255}?)>?[\s:;,.]*$",
    re.IGNORECASE,
)
_COLON = re.compile(
    r"^\s*<([^<>\s]{1,128}@[^<>\s]{1,255})>\s*(?::|,|\(|\.\.\.|;|-)|"
    r"^\s*<?([^<>\s:]{1,128}@[^<>\s:]{1,255})>?\s*(?::|\.\.\.)"
)
_ENVELOPED = re.compile(
    r"rcpt to:\s*<?([^<>\s]{1,128}@[^<>\s]{1,255})>?|"
    r"^\s*[45][0-9][0-9][ -]<([^<>\s]{1,128}@[^<>\s]{1,255})>\.\.\.",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?:recipients?|rcpt|to|for|address(?:es)?|user|mailbox|account|adresse|destinataire|empf[äa]nger|"
    r"destinatario|"
    r"original-recipient|final-recipient|failed recipient|addressee|deliver(?:y|ed)? to|"
    r"e-?mail)(?![\w@.-])[ \t]*(?:is|was|address|of)?[ \t]*[:=]?[ \t]*[<\[\"'(]{0,2}"
    r"(?:rfc822;|smtp:|mailto:)?[ \t]*"
    r"([^\s<>:,;()\[\]\"']{1,128}@[^\s<>:,;()\[\]\"']{1,255})",
    re.IGNORECASE,
)
_NOBODY = re.compile(
    r"^(?:mailer-daemon|postmaster|mail-daemon|mailerdaemon|abuse|bounces?|no-?reply|hostmaster|"
    r"webmaster|root)@",
    re.I,
)
_FIELD_OF_OTHERS = re.compile(
    r"^[\s>]*(?:from|sender|reply-to|message-id|in-reply-to|references|return-path|x-[\w-]+|mail from|cc|"
    r"contact|please contact|received|errors-to|date|subject)\s*[:<=]|message-id|mail from:|contact|"
    r"for (?:further|help|assist)",
    re.IGNORECASE,
)
_HELLO = re.compile(r"(?:message-?id|\bid\b|from|by|sender)[ :=<\[]{1,4}$", re.IGNORECASE)


@dataclass(slots=True)
class Found:
    """Whom a notice is about, each with the words about it, and all of its words."""

    about: dict[str, str] = field(default_factory=dict)
    text: str = ""
    is_delay: bool = False
    returned: Returned | None = None


@dataclass(slots=True)
class _Marks:
    """Addresses by how surely a notice is about them, with the lines that name them."""

    sure: dict[str, int] = field(default_factory=dict)
    enveloped: dict[str, int] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    weak: dict[str, int] = field(default_factory=dict)


def tells_failure(subject: str) -> bool:
    """Whether a subject is one that notices of failure have."""
    return _SUBJECTS.search(subject[:MAX_LINE_CHARACTERS]) is not None


def plain(part: Part, text: str) -> str:
    """The words of a text part, without markup where it is HTML."""
    return html_to_text(text) if part.kind == "text/html" else text


def about(text: str, recipient: str) -> str:
    """The words of a notice around an address, '' where it is not named."""
    lines = text[:MAX_CHARACTERS].splitlines()[:MAX_LINES]
    wanted = recipient.lower()
    for number, line in enumerate(lines):
        if wanted in line[:MAX_LINE_CHARACTERS].lower():
            return _words_from(lines, number)
    return "\n".join(lines[:40]) if wanted else ""


def read(header: Header, parts: list[Part], message: bytes, returned: Returned | None) -> Found | None:
    """Whom a notice in words is about; None for mail that is no notice, or names nobody."""
    subject = decode(header.first(b"subject") or b"")[:MAX_LINE_CHARACTERS]
    sender = decode(header.first(b"from") or header.first(b"sender") or b"")[:MAX_LINE_CHARACTERS]
    path = (header.first(b"return-path") or b"x").strip()
    failed = header.first(b"x-failed-recipients")
    marks = bool(_NOTIFIERS.search(sender)) + (path in (b"<>", b"< >")) + bool(failed) * 2
    is_subject = tells_failure(subject)
    if not marks and not is_subject:
        return None
    text, rest = _own_words(parts, message)
    if marks < 2 and not (marks and is_subject) and not _shows_dialogue(text, marks, is_subject):
        return None
    if not failed and not _FAILURES.search(text[:16_384]) and not is_subject:
        return None
    if returned is None and rest:
        returned = returned_of(rest.encode("utf-8", "replace"), is_whole=False)
    lines = [line[:MAX_LINE_CHARACTERS] for line in text.splitlines()[:MAX_LINES]]
    names = _names(header, lines, failed, returned)
    if not names:
        return None
    told = {name: _words_from(lines, at) if at >= 0 else text[:2_000] for name, at in names.items()}
    whole = f"{subject}\n{text}"
    return Found(told, whole[:8_000], _is_delay(subject, text), returned)


def _is_delay(subject: str, text: str) -> bool:
    if re.search(r"warning|delay", subject, re.IGNORECASE):
        return not re.search(r"fail|undeliverable", subject, re.IGNORECASE)
    return (
        bool(_DELAYS.search(text[:4_000]))
        and not _FINAL.search(f"{subject}\n{text[:4_000]}")
        and not _has_code(text)
    )


def _has_code(text: str) -> bool:
    return re.search(r"(?<![0-9.])5(?:[0-9][0-9][ -]|\.[0-9]\.[0-9])", text[:4_000]) is not None


def _shows_dialogue(text: str, marks: int, is_subject: bool) -> bool:
    """Whether words hold what only a notice has: a server's reply beside an address."""
    head = text[:16_384]
    strong = re.search(
        r"rcpt to:|<<< [45][0-9][0-9]|\b5[0-9][0-9][ -]#?5?\.?[0-9]?|\b5\.[0-9]\.[0-9]\b|(?:could|"
        r"can) ?n[o']t be delivered|"
        r"did not reach|was not delivered|undeliverable|unknown user|user unknown|"
        r"delivery (?:has )?failed|not delivered|no such user|"
        r"unable to deliver|following address|couldn't be delivered|over quota|permanent(?:ly)? (?:error|"
        r"fail|fatal)|"
        r"failed to deliver|failed recipient|has been returned|is full",
        head,
        re.IGNORECASE,
    )
    return strong is not None and (marks > 0 or is_subject)


def _own_words(parts: list[Part], message: bytes) -> tuple[str, str]:
    """What the notice itself says, and what stands behind that in the same text."""
    pieces: list[str] = []
    octets = 0
    has_plain = False
    for part in parts:
        if part.is_message or part.kind in ("text/rfc822-headers", "message/global-headers"):
            break
        if part.kind == "text/html" and has_plain:
            continue
        if part.is_text or part.kind in _STATUS:
            text = plain(part, part_text(part, message))[:MAX_CHARACTERS]
            has_plain = has_plain or part.kind == "text/plain"
            pieces.append(text)
            octets += len(text)
            if octets >= MAX_CHARACTERS:
                break
    return _cut("\n".join(pieces)[:MAX_CHARACTERS])


_STATUS = frozenset(("message/delivery-status", "message/global-delivery-status"))


def _cut(text: str) -> tuple[str, str]:
    """Words before and behind the place where the returned message begins."""
    kept = 0
    position = 0
    for line in text.splitlines(keepends=True)[: MAX_LINES * 2]:
        bounded = line[:MAX_LINE_CHARACTERS]
        if kept >= 2 and _RETURNED_MARK.search(bounded) and not _TRANSCRIPT.search(bounded):
            rest = text[position:]
            # The mark itself is no field of the header.
            first = (
                rest.find("\n") + 1
                if not re.match(r"\s*>?(?:received|return-path):", rest, re.IGNORECASE)
                else 0
            )
            return text[:position], rest[first:].lstrip("\r\n ->")
        kept += bool(bounded.strip())
        position += len(line)
    return text, ""


def _names(
    header: Header, lines: list[str], failed: bytes | None, returned: Returned | None
) -> dict[str, int]:
    """Who is concerned, with the line that names them, -1 for none; surer marks rule out weaker ones."""
    if failed:
        listed = _ADDRESS.findall(decode(failed)[:MAX_CHARACTERS])[:MAX_ADDRESSES]
        if listed:
            return {one: _line_of(lines, one) for one in dict.fromkeys(listed)}
    others = _others(header, returned)
    marks = _Marks()
    sure, enveloped, named, weak = marks.sure, marks.enveloped, marks.named, marks.weak
    for number, line in enumerate(lines):
        if "@" not in line or len(weak) >= MAX_ADDRESSES:
            continue
        _sort_line(line, number, marks, others)
    recipients = _recipients_of(returned)
    known = {
        one: at for one, at in {**sure, **enveloped, **named, **weak}.items() if one.lower() in recipients
    }
    if sure:
        both = {one: at for one, at in sure.items() if one in known}
        return both or sure
    if enveloped:
        return enveloped
    if known:
        return known
    if named:
        return named
    if len(recipients) == 1 and not weak:
        return dict.fromkeys(recipients.values(), -1)
    if weak:
        first = next(iter(weak))
        return {first: weak[first]}
    return {}


def _sort_line(line: str, number: int, marks: _Marks, others: set[str]) -> None:
    """Note the addresses of a line by the mark they have."""
    found = _ENVELOPED.search(line)
    if found:
        _note(marks.enveloped, found[1] or found[2], number, others)
        return
    is_foreign = _FIELD_OF_OTHERS.search(line) is not None
    found = None if is_foreign else _ALONE.match(line) or _COLON.match(line)
    if found:
        address = next(group for group in found.groups() if group)
        _note(marks.sure, address, number, others)
    elif not is_foreign:
        for match in list(_NAMED.finditer(line))[:10]:
            _note(marks.named, match[1], number, others)
    for match in list(_ADDRESS.finditer(line))[:20]:
        if not _HELLO.search(line[max(0, match.start() - 20) : match.start()]):
            _note(marks.weak, match[1], number, others)


def _note(into: dict[str, int], address: str, number: int, others: set[str]) -> None:
    match = _ADDRESS.search(address.strip(".,;:'\"<>()[]"))
    if match is None:
        return
    cleaned = match[1].rstrip(".'")
    lowered = cleaned.lower()
    if lowered in others or _NOBODY.match(cleaned):
        return
    if lowered not in {one.lower() for one in into}:
        into[cleaned] = number


def _others(header: Header, returned: Returned | None) -> set[str]:
    """Addresses that a notice names for other reasons: whom it is from and who wrote the mail."""
    texts = [decode(header.first(name) or b"") for name in (b"from", b"to", b"reply-to", b"sender", b"cc")]
    if returned is not None:
        own = Header(returned.header)
        texts += [
            decode(own.first(name) or b"") for name in (b"from", b"sender", b"reply-to", b"return-path")
        ]
    found = {one.lower() for text in texts for one in _ADDRESS.findall(text[:4_000])[:20]}
    # A message to oneself bounces as well.
    return found - set(_recipients_of(returned))


def _recipients_of(returned: Returned | None) -> dict[str, str]:
    """Whom the returned message names as its recipients, by their lower-case form."""
    if returned is None:
        return {}
    own = Header(returned.header)
    values = [
        decode(value)
        for name in (b"to", b"cc", b"x-original-to", b"delivered-to")
        for value in own.all(name)[:5]
    ]
    listed = [one for value in values for one in _ADDRESS.findall(value[:MAX_CHARACTERS])[:MAX_ADDRESSES]]
    return {one.lower(): one for one in listed}


def _line_of(lines: list[str], address: str) -> int:
    wanted = address.lower()
    return next((number for number, line in enumerate(lines) if wanted in line.lower()), -1)


def _words_from(lines: list[str], start: int) -> str:
    """The words about who is named in a line: to the end of the paragraph behind it, or the next name."""
    kept = [lines[start][:MAX_LINE_CHARACTERS]]
    blanks = 0
    for line in lines[start + 1 : start + 1 + ABOUT_LINES]:
        if not line.strip():
            blanks += 1
            if blanks > 1 and len(kept) > 1:
                break
            continue
        if len(kept) > 1 and blanks and _COLON.match(line):
            break
        if _COLON.match(line) and "@" in line and not line.lstrip().startswith(("<<<", ">>>")):
            break
        kept.append(line[:MAX_LINE_CHARACTERS])
    return "\n".join(kept)
