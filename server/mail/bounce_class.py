"""Why a delivery failed, and whose fault it is: a class and a blame from code, enhanced code and words.

Owns that judgement for outcomes of our own attempts and for notices of others alike. Words are
asked first where they are clear, since many servers give one code for everything; then the
enhanced code; then the reply code. Pure, and linear in the text's length.

RFC 3463 (enhanced codes), RFC 5321 4.2, RFC 7372, RFC 7505, RFC 7504.
"""

import re
from dataclasses import dataclass
from enum import Enum

MAX_TEXT_CHARACTERS = 4_000


class BounceClass(str, Enum):
    """Kinds of failures. HARD: there is no such recipient. SOFT: it may go another time.

    BLOCK: the sending server or domain is not wanted. POLICY: a rule that has nothing to do with those.
    """

    HARD = "hard"
    SOFT = "soft"
    BLOCK = "block"
    CONTENT = "content"
    MAILBOX_FULL = "mailbox_full"
    POLICY = "policy"
    UNKNOWN = "unknown"


class Blame(str, Enum):
    """Whose fault it is; only the recipient's own suppresses an address. NOBODY: it cannot be told."""

    RECIPIENT = "recipient"
    OURS = "ours"
    CONTENT = "content"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Judged:
    """A failure's class and blame, and the enhanced code behind it, '' for none."""

    bounce_class: BounceClass
    blame: Blame
    enhanced: str = ""


_BLAME = {
    BounceClass.HARD: Blame.RECIPIENT,
    BounceClass.MAILBOX_FULL: Blame.RECIPIENT,
    BounceClass.SOFT: Blame.NOBODY,
    BounceClass.BLOCK: Blame.OURS,
    BounceClass.POLICY: Blame.CONTENT,
    BounceClass.CONTENT: Blame.CONTENT,
    BounceClass.UNKNOWN: Blame.NOBODY,
}

# What servers say, the clearest first: the first class of which a pattern is found wins. Words of lists and
# authentication come before 'unknown', since block lists' pages speak of users, too.
_WORDS: tuple[tuple[BounceClass, str], ...] = (
    (
        BounceClass.SOFT,
        r"name service error[^;\n]{0,80}(?:malformed|try again)|malformed or unexpected name server|"
        r"lost connection with|"
        r"receiving mail (?:at a rate|too quickly)|conversation with \S{1,255} timed out|"
        r"connection timed out|will be retried|"
        r"did not accept our requests to connect|error: queue file write|insufficient system (?:storage|"
        r"resources)",
    ),
    (
        BounceClass.HARD,
        r"user unknown|unknown user|no such user|recipient\s+address\s+rejected:\s+(?:access denied|user|"
        r"unknown|undeliver)|"
        r"(?:account|mailbox|compte|user)[^.;\n]{0,30}(?:is |est |has been )?(?:frozen|locked|bloqu|"
        r"suspended|blocked\b)|mailbox unavailable|"
        r"user doesn't have|account (?:that you tried to reach )?(?:does not exist|is disabled)|"
        r"invalid recipient|mailbox not found|"
        r"recipient not found|no smtp service|unrouteable address|domain not found|no such domain",
    ),
    (BounceClass.POLICY, r"resolver\.rst\."),
    (
        BounceClass.CONTENT,
        r"duplicate header|multiple (?:\S{1,20} ){0,3}addresses in from|line limit|protocol violation|"
        r"email content|mcspam",
    ),
    (
        BounceClass.MAILBOX_FULL,
        r"(?:mail ?box|mailfolder|mail ?folder|account|inbox|user|recipient|maildrop|mail ?drop|"
        r"disk)[^.;\n]{0,40}"
        r"(?:\bfull\b|over ?quota|out of (?:disk )?(?:space|storage)|exceed\w*|storage limit)|"
        r"quota exceed|exceed\w* "
        r"(?:\w+ ){0,5}(?:quota|storage)|over (?:\w+ ){0,3}quota|disk quota|quota (?:full|violation)|"
        r"mailbox size limit|full mailbox|insufficient (?:disk )?(?:space|quota)|not enough (?:storage|"
        r"disk) space|no space left "
        r"in mailbox|quotaexceeded|storage quota|overquota|hard quota|soft quota|out of storage|"
        r"can ?not receive new messages because its disk|mailboxfull|mail quota",
    ),
    (
        BounceClass.BLOCK,
        r"black ?list|black-list|block ?list|block-list|dnsbl|\brbls?\b|spamhaus|spamcop|"
        r"barracudacentral|\bsorbs\b|"
        r"surbl|senderbase|abuseat|cloudmark|uceprotect|\bptr\b|reverse (?:dns|host ?name|lookup|map)|"
        r"rdns|reverse-? ?dns|dns-?reverse|name lookup for the ip|(?:cannot|can't|could not|"
        r"cant) find your (?:reverse )?host ?name|"
        r"\bspf\b|\bdkim\b|\bdmarc\b|sender policy framework|unauthenticated (?:mail|e-?mail|sender)|"
        r"not authenticated|"
        r"(?:bad|poor|low|ip|sender|domain)[ -]?reputation|reputation (?:of|too|score|filter)|"
        r"(?:your|client|sending|sender|the|this|source|from)[^.;\n]{0,30}(?:ip|host|server|network|"
        r"domain|address|mta|mx)\b"
        r"[^.;\n]{0,40}(?:blocked|banned|denied|rejected|not (?:allowed|permitted|authori[sz]ed)|refused|"
        r"listed|has been|unsolicited)|"
        r"relay(?:ing)? (?:access )?(?:denied|not (?:allowed|permitted)|prohibited)|unable to relay|"
        r"not allowed to relay|"
        r"relay not permitted|no relaying|mail relay|client host[^;\n]{0,60}(?:blocked|rejected)|"
        r"connections? (?:from|has been)[^.;\n]{0,40}"
        r"(?:blocked|refused|rejected|denied)|dynamic (?:ip|address)|dial-?up|no valid (?:a|mx) record|"
        r"sender (?:address )?(?:rejected|denied|blocked|verif\w+ failed|is invalid|not (?:found|"
        r"allowed))|sender verif|invalid sender|"
        r"sender domain|senders? (?:domain|address)|domain of sender|helo|ehlo (?:command )?(?:rejected|"
        r"argument)|"
        r"access denied|mail from[^.;\n]{0,50}(?:rejected|refused|denied|blocked)|no such sender|"
        r"bad sender|unverified sender|"
        r"service refused|not accepting (?:mail|connections) from|too many (?:connections|spam|complaints)|"
        r"mismatches client|not verified|authentication (?:required|information|fail|check)|smtp auth|"
        r"unexpected volume|user complaints|"
        r"frequency limited|too many recipients this|blocked ip|\(bl\)|invalid ip|from: domain|"
        r"not accepting connections|"
        r"fix reverse|whitelist|\bbl\d+\b|proofpoint\.com/ipcheck|junkmail rejected|authori[sz]ed (?:ip|"
        r"relay)",
    ),
    (
        BounceClass.CONTENT,
        r"spam|considered (?:to be )?(?:spam|junk|bulk)|unsolicited|"
        r"bulk (?:mail|e-?mail)|\bvirus\b|malware|infected|trojan|phish|"
        r"message (?:is )?(?:size|too (?:big|large|long))|message size|(?:size|length) (?:exceeds|limit)|"
        r"too (?:large|big)|"
        r"exceed\w* (?:\w+ ){0,6}(?:size|maximum|limit)|larger than|maximum (?:message )?size|"
        r"message[^.;\n]{0,40}too (?:big|large)|"
        r"attachment (?:is|type|not|re|name|with)|file ?name extension|content (?:rejected|filter|not a|"
        r"rejection)|message content|"
        r"header (?:error|line|syntax)|malformed|(?:bad|invalid|missing|duplicate) (?:\w+ ){0,2}header|"
        r"not (?:rfc ?)?(?:5322|2822|822|compliant)|"
        r"subject (?:header )?(?:is )?(?:empty|missing)|message rejected due to "
        r"(?:content|local)|contains? (?:a )?(?:url|link|virus|spam|banned|html|prohibited)|"
        r"denied by content|"
        r"message (?:contains|looks|identified|was detected)|bare (?:cr|lf)|line too long|message format",
    ),
    (
        BounceClass.HARD,
        r"(?:user|recipient|mail ?box|address|account|addressee|mailbox name|alias|person|rcpt|"
        r"destinat\w+|employee|"
        r"user ?name|addresse|e-?mail|inbox|customer|member|login|subscriber|userid|user id)"
        r"[^.;\n]{0,60}(?:\bunknown|not (?:be )?(?:found|exist|known|listed|local|registered|valid|"
        r"a valid|available|here|recogni[sz]ed|have|our)|"
        r"does(?:n't| not| not currently)? (?:not )?exist|doesn't|does not|don't|invalid|no longer|"
        r"unavailable|undeliverable|disabled|"
        r"inactive|is inactive|suspended|deactivated|"
        r"deleted|expired|terminated|closed|removed|nonexist|isn't|is not|has moved|not in|discontinued|"
        r"no mailbox|has been)|"
        r"no such (?:\w+ ){0,3}(?:user|recipient|mail ?box|address|account|person|domain|host|alias|"
        r"local|name|customer|e-?mail)|"
        r"(?:unknown|invalid|bad|inactive|nonexistent|non-existent|undeliverable|illegal|disabled|"
        r"incorrect|wrong|unrouteable|unroutable|"
        r"unresolvable|dead|closed|no valid|not a valid|undefined|suspended) (?:\w+ ){0,3}(?:user|"
        r"recipient|mail ?box|address|account|alias|host|"
        r"domain|destination|local|rcpt|addressee|login|e-?mail|username|mail)|"
        r"(?:don't|do not|can't|cannot|could not|couldn't|unable to|not able to|didn't|"
        r"did not) (?:\w+ ){0,3}"
        r"(?:know|find|have|recogni[sz]e|match|resolve|verify)"
        r" (?:\w+ ){0,6}(?:user|recipient|mail ?box|address|account|person|domain|host|name|e-?mail|him|"
        r"her|you|entry|alias|directory)|"
        r"user ?unknown|unknown user|unknown local|mailbox unavailable|no mailbox here|not our customer|"
        r"no account|"
        r"host (?:unknown|not found)|unknown host|domain (?:not found|name not found|does not exist|"
        r"is not valid)|nxdomain|name or service not known|"
        r"no (?:mx|host|a) (?:record|found|or a)|(?:name|host|domain|mx) (?:lookup|"
        r"service error)[^;\n]{0,80}(?:not found|nxdomain|type=a)|"
        r"does not (?:accept|take|receive) (?:any )?(?:mail|e-?mail)|null ?mx|nullmx|"
        r"recipnotfound|recipientnotfound|resolver\.adr|no user(?: by that)?|is not (?:a (?:valid|known|"
        r"local)|known|listed)|"
        r"not listed in|non(?:-|)existent|nobody (?:here )?by that name|address rejected|"
        r"addressed? (?:is )?unknown|"
        r"this (?:user|account|address|mailbox)|user (?:not|doesn)|user\([^)]*\) (?:unknown|not)|"
        r"no mail-?box|couldn't find any host named|"
        r"cannot be delivered to this address|no longer (?:with|at|works|employed|accept|exist|valid|on|"
        r"in)|has (?:moved|left)|moved to|"
        r"rejected by recipient|recipient (?:address )?rejected|rcpt (?:failed|rejected)|"
        r"retry time not reached for any host after",
    ),
    (
        BounceClass.SOFT,
        r"try again|try later|tempor|timed? ?out|time-?out|grey-?list|gray-?list|too many (?:concurrent|"
        r"sessions|messages|recipients|hops)|"
        r"connection (?:refused|lost|reset|dropped|failed|closed|timed)|could not connect|"
        r"unable to connect|couldn't connect|"
        r"can'?t (?:connect|establish)|cannot (?:connect|establish)|not (?:responding|reachable)|"
        r"unreachable|no route|"
        r"no answer from host|host (?:is )?(?:down|not respond)|rate ?limit|throttl|defer|service (?:not|"
        r"un)available|"
        r"system (?:load|not|un|resource)|resources|insufficient system|out of memory|queue (?:too|file|"
        r"lifetime|time)|"
        r"has been in the queue|expired|delivery time|max(?:imum)? (?:queue|time)|retry (?:time|timeout)|"
        r"lost connection|conversation|"
        r"loop|hop count|i/o error|local (?:error|configuration)|server (?:busy|error)|overload|"
        r"dns (?:error|server|fail)|starttls|\btls\b|"
        r"network (?:error|is)|all (?:relevant|hosts)|giving up|unable to deliver|"
        r"could not be delivered for|configuration|"
        r"please (?:retry|slow)|4\.[0-9]\.[0-9]|high volume|unusual (?:rate|traffic)|delayed|not yet|"
        r"\bdown\b|is busy",
    ),
    (
        BounceClass.POLICY,
        r"policy|polic(?:ies|y)|not (?:allowed|permitted|authori[sz]ed|accept)|prohibited|forbidden|"
        r"administrative|"
        r"restrict|security|denied|refused|rejected|permission|not have permission|unauthori[sz]ed|"
        r"disallow|blocked|filtered|not accept",
    ),
)
_PATTERNS = tuple((kind, re.compile(words)) for kind, words in _WORDS)

# RFC 3463 3 and IANA's registry: subject and detail, whatever the first digit.
_BY_SUBJECT: dict[str, BounceClass] = {
    "1.0": BounceClass.HARD,
    "1.1": BounceClass.HARD,
    "1.2": BounceClass.HARD,
    "1.3": BounceClass.HARD,
    "1.4": BounceClass.HARD,
    "1.6": BounceClass.HARD,
    "1.7": BounceClass.BLOCK,
    "1.8": BounceClass.BLOCK,
    "1.10": BounceClass.HARD,  # RFC 7505
    "2.0": BounceClass.UNKNOWN,
    "2.1": BounceClass.HARD,
    "2.2": BounceClass.MAILBOX_FULL,
    "2.3": BounceClass.CONTENT,
    "2.4": BounceClass.SOFT,
    "3.0": BounceClass.SOFT,
    "3.1": BounceClass.SOFT,
    "3.2": BounceClass.SOFT,
    "3.3": BounceClass.SOFT,
    "3.4": BounceClass.CONTENT,
    "3.5": BounceClass.SOFT,
    "4.0": BounceClass.SOFT,
    "4.1": BounceClass.SOFT,
    "4.2": BounceClass.SOFT,
    "4.3": BounceClass.SOFT,
    "4.4": BounceClass.SOFT,
    "4.5": BounceClass.SOFT,
    "4.6": BounceClass.SOFT,
    "4.7": BounceClass.SOFT,
    "5.0": BounceClass.UNKNOWN,
    "5.1": BounceClass.SOFT,
    "5.2": BounceClass.SOFT,
    "5.3": BounceClass.POLICY,
    "5.4": BounceClass.SOFT,
    "6.0": BounceClass.CONTENT,
    "6.1": BounceClass.CONTENT,
    "6.2": BounceClass.CONTENT,
    "6.3": BounceClass.CONTENT,
    "6.4": BounceClass.CONTENT,
    "6.5": BounceClass.CONTENT,
    "6.6": BounceClass.CONTENT,
    "6.7": BounceClass.CONTENT,
    "6.9": BounceClass.CONTENT,
    "7.0": BounceClass.POLICY,
    "7.1": BounceClass.POLICY,
    "7.2": BounceClass.POLICY,
    "7.3": BounceClass.POLICY,
    "7.7": BounceClass.CONTENT,
    "7.13": BounceClass.HARD,  # RFC 5248 registry: the recipient's account is disabled
    "7.17": BounceClass.HARD,  # RFC 7293: the mailbox has a new owner
    "7.18": BounceClass.HARD,
    **{f"7.{detail}": BounceClass.BLOCK for detail in (20, 21, 22, 23, 24, 25, 26, 27, 28, 29)},  # RFC 7372
    "7.30": BounceClass.POLICY,  # RFC 8689
}
_BY_MAIN: dict[str, BounceClass] = {
    "1": BounceClass.HARD,
    "2": BounceClass.UNKNOWN,
    "3": BounceClass.SOFT,
    "4": BounceClass.SOFT,
    "5": BounceClass.UNKNOWN,
    "6": BounceClass.CONTENT,
    "7": BounceClass.POLICY,
}
# Enhanced codes that are believed whatever the words are: they say one thing alone.
_SURE = frozenset(
    {
        "1.1",
        "1.10",
        "2.2",
        "2.3",
        "3.4",
        "6.0",
        "6.1",
        "6.3",
        "7.20",
        "7.21",
        "7.22",
        "7.23",
        "7.24",
        "7.25",
        "7.26",
        "7.27",
    }
)
_BY_CODE: dict[int, BounceClass] = {
    421: BounceClass.SOFT,
    450: BounceClass.SOFT,
    451: BounceClass.SOFT,
    452: BounceClass.SOFT,
    521: BounceClass.HARD,  # RFC 7504
    556: BounceClass.HARD,  # RFC 7505
    550: BounceClass.UNKNOWN,
    551: BounceClass.HARD,
    552: BounceClass.MAILBOX_FULL,
    553: BounceClass.HARD,
    554: BounceClass.UNKNOWN,
}
# Where a notice says that the server refused before it was told of any recipient.
_EARLY = re.compile(
    r"after (?:pipelined )?(?:mail|sending mail|helo|ehlo|initial)|reply to (?:mail|helo|ehlo)|"
    r"initial connection|"
    r"my name was rejected|sender was rejected|\[mail_from\]"
)
_NAMES = re.compile(r"<?[^\s<>@]{1,128}@[^\s<>@]{1,255}>?|https?://\S{1,500}|<[^<>\s]{1,255}>")
# RFC 3463 3.2, 3.3: the address or its mailbox, each with a detail: X.1.0 and X.2.0 say nothing.
_OF_RECIPIENT = re.compile(r"1\.[1-6]$|2\.[1-4]$")
_ENHANCED = re.compile(r"[245]\.([0-9]{1,3}\.[0-9]{1,3})")


def classify(code: int, enhanced: str, text: str, *, phase: str = "") -> Judged:
    """Return the class of a failure. phase: of our own attempt, where it ended, as Outcome has it.

    A failure with a temporary code is SOFT unless a full mailbox is behind it: what may pass is no
    proof of anything.
    """
    found = _ENHANCED.fullmatch(enhanced)
    subject = found[1] if found else ""
    # What addresses and links are called says nothing of the failure.
    words = " ".join(_NAMES.sub(" ", text[:MAX_TEXT_CHARACTERS].lower()).split())
    if not phase and _EARLY.search(words):
        phase = "mail"
    kind = _by_words(words, subject) or _by_enhanced(subject) or _by_code(code, phase)
    if kind is BounceClass.UNKNOWN and (_PATTERNS[-1][1].search(words) or "groups.google.com" in text):
        kind = BounceClass.POLICY  # Google's groups say in 50 languages that one may not write to them
    is_temporary = enhanced.startswith("4") or (not enhanced and 400 <= code < 500)
    if is_temporary and kind not in (BounceClass.MAILBOX_FULL, BounceClass.BLOCK, BounceClass.CONTENT):
        kind = BounceClass.SOFT
    if kind in (BounceClass.HARD, BounceClass.UNKNOWN) and phase in ("mail", "connect", "ehlo", "tls"):
        # Nobody has named the recipient yet: what is not known there is our sender or our host.
        kind = BounceClass.BLOCK
    blame = _BLAME[kind]
    if kind is BounceClass.SOFT and _OF_RECIPIENT.match(subject):
        blame = Blame.RECIPIENT
    return Judged(kind, blame, enhanced)


def _by_words(words: str, subject: str) -> BounceClass | None:
    sure = _BY_SUBJECT[subject] if subject in _SURE else None
    if sure is not None:
        first = next((kind for kind, pattern in _PATTERNS[:5] if pattern.search(words)), None)
        return first if first is BounceClass.MAILBOX_FULL and sure is BounceClass.HARD else sure
    if not words:
        return None
    for kind, pattern in _PATTERNS:
        if pattern.search(words):
            if kind is BounceClass.POLICY and subject and subject != "0.0":
                return None  # too weak a word against a code that says more
            return kind
    return None


def _by_enhanced(subject: str) -> BounceClass | None:
    if not subject:
        return None
    known = _BY_SUBJECT.get(subject) or _BY_MAIN.get(subject.partition(".")[0])
    return None if known is BounceClass.UNKNOWN else known


def _by_code(code: int, phase: str) -> BounceClass:
    if code in _BY_CODE:
        kind = _BY_CODE[code]
    elif 400 <= code < 500:
        kind = BounceClass.SOFT
    else:
        kind = BounceClass.UNKNOWN
    if kind is BounceClass.UNKNOWN and phase == "rcpt" and code == 550:
        return BounceClass.HARD
    return kind
