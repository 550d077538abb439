"""Generated messages and records on which two evaluators are asked the same.

All comes from one seed but the keys' octets. A case has its whole DNS with it.
"""

import random
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256
from typing import Any

import dkim
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.sender_auth import letters
from tests.sender_auth.original import load
from tests.sender_auth.zone import TIMEOUT

forms = load("dkim.canonicalization")
Records = dict[str, list[Any]]
Zone = dict[str, Records]

BODIES = (
    b"Hello.\r\n",
    b"",
    b"\r\n\r\n",
    b" \r\n",
    b"Two  blanks \t and a tab\t\r\n\r\n\r\n",
    b"no end of line",
    b"a\r\n\r\n b\r\n \t\r\n\r\n",
    b"\xc3\xa4\xff eight bits\r\n",
)


@dataclass(frozen=True)
class Case:
    """One message as it arrives. sender: None is the null one."""

    name: str
    zone: Zone
    content: bytes = b"From: ann@plain.example\r\nSubject: x\r\n\r\nx\r\n"
    ip: str = "192.0.2.1"
    helo: str = "mail.helo.example"
    sender: str | None = None


def generate(seed: int, now: int) -> Iterator[Case]:
    """All cases of a seed; now: seconds since 1970, which signatures are made around."""
    dice = random.Random(seed)
    for number in range(160):
        yield spf_case(dice, number)
    yield from dkim_cases(dice, now)
    for number in range(160):
        yield dmarc_case(dice, number, now)
    yield from arc_cases(now)


# ---- SPF ----

HOSTS = ("a.spf.example", "b.spf.example", "empty.spf.example", "none.spf.example")
TERMS: tuple[Callable[[random.Random], str], ...] = (
    lambda d: f"ip4:192.0.2.{d.randrange(4)}",
    lambda d: f"ip4:192.0.2.0/{d.choice([0, 8, 24, 31, 32, 33])}",
    lambda d: "ip6:2001:db8::1",
    lambda d: f"ip6:2001:db8::/{d.choice([32, 64, 128, 129])}",
    lambda d: "a",
    lambda d: f"a:{d.choice(HOSTS)}",
    lambda d: f"a:{d.choice(HOSTS)}/{d.choice([24, 30])}",
    lambda d: f"a:{d.choice(HOSTS)}/24//64",
    lambda d: "mx",
    lambda d: f"mx:{d.choice(HOSTS)}",
    lambda d: f"include:{d.choice(['yes', 'no', 'loop', 'bad', 'void', 'slow', 'many'])}.inc.example",
    lambda d: f"exists:{d.choice(['%{l}', '%{ir}', '%{d}', '%{o1r-}', '%{l1-}'])}.mac.example",
    lambda d: f"exists:{d.choice(HOSTS)}",
    lambda d: "ptr",
    lambda d: "ptr:spf.example",
    lambda d: "all",
    lambda d: d.choice(
        ["foo", "ip4:", "a:", "include:", "ip4:1.2.3", "a/33", "mx//200", "exists:%{z}.x.example"]
    ),
)
MODIFIERS: tuple[str, ...] = (
    "redirect=yes.inc.example",
    "redirect=no.inc.example",
    "redirect=none.spf.example",
    "redirect=slow.inc.example",
    "exp=why.spf.example",
    "x-other=thing",
    "redirect=yes.inc.example redirect=no.inc.example",
)
SPF_ZONE: Zone = {
    "a.spf.example": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"], "MX": [(10, "a.spf.example")]},
    "b.spf.example": {"A": ["192.0.2.77", "192.0.2.78"], "MX": [(5, "a.spf.example"), (9, "b.spf.example")]},
    "empty.spf.example": {"TXT": ["nothing"]},
    "why.spf.example": {"TXT": ["%{i} may not send for %{d}"]},
    "yes.inc.example": {"TXT": ["v=spf1 ip4:192.0.2.1 ip6:2001:db8::1 -all"]},
    "no.inc.example": {"TXT": ["v=spf1 ~all"]},
    "loop.inc.example": {"TXT": ["v=spf1 include:loop.inc.example -all"]},
    "bad.inc.example": {"TXT": ["v=spf1 ipv4:192.0.2.1 -all"]},
    "void.inc.example": {
        "TXT": ["v=spf1 a:v1.none.example a:v2.none.example a:v3.none.example ip4:192.0.2.1 -all"]
    },
    "slow.inc.example": {TIMEOUT: []},
    "many.inc.example": {"TXT": ["v=spf1 " + " ".join(f"a:h{n}.many.example" for n in range(11)) + " +all"]},
    **{f"h{n}.many.example": {"A": [f"203.0.113.{n}"]} for n in range(11)},
    "ann.mac.example": {"A": ["127.0.0.2"]},
    "1.2.0.192.mac.example": {"A": ["127.0.0.2"]},
    "spf.example.mac.example": {"A": ["127.0.0.2"]},
    "1.2.0.192.in-addr.arpa": {"PTR": ["a.spf.example"]},
}


def spf_case(dice: random.Random, number: int) -> Case:
    parts = [
        dice.choice(["", "", "+", "-", "~", "?"]) + dice.choice(TERMS)(dice) for _ in range(dice.randrange(6))
    ]
    if dice.random() < 0.4:
        parts.insert(dice.randrange(len(parts) + 1), dice.choice(MODIFIERS))
    if dice.random() < 0.6:
        parts.append(dice.choice(["-all", "~all", "?all", "all"]))
    version = dice.choice(["v=spf1"] * 12 + ["V=SPF1", "v=spf10", "v=spf2.0"])
    text = " ".join([version, *parts])
    records: Records = {"TXT": [text], "A": ["192.0.2.9"], "MX": [(10, "b.spf.example")]}
    if number % 20 == 7:
        records["TXT"] = [text, "v=spf1 -all"]
    elif number % 20 == 13:
        records["TXT"] = ["other", text]
    elif number % 20 == 17 and len(text) > 12:
        records["TXT"] = [[text[:9], text[9:]]]
    elif number == 42:
        records = {TIMEOUT: []}
    is_null = number % 11 == 5
    name = "mail.spf.example" if is_null else "spf.example"
    return Case(
        f"spf/{number}: {records.get('TXT')}",
        {**SPF_ZONE, name: records},
        ip=dice.choice(["192.0.2.1", "192.0.2.1", "192.0.2.77", "2001:db8::1"]),
        helo="mail.spf.example" if is_null else "mail.helo.example",
        sender=None if is_null else "ann@spf.example",
    )


# ---- DKIM ----


@dataclass(frozen=True)
class Signing:
    """How a message is signed. tags: added or replaced, None leaves one out; key: of letters."""

    header: str = "relaxed"
    body: str = "relaxed"
    names: tuple[str, ...] = ("from", "to", "subject", "date")
    key: Any = None
    algorithm: str = ""
    tags: dict[str, str | None] = field(default_factory=dict)
    separator: str = "; "


LETTER = (
    b"From: Ann <ann@dkim.example>\r\nTo: bob@far.example\r\nSubject:  An   invitation\t to\r\n  tea \r\n"
    b"Date: Tue, 1 Jul 2025 10:00:00 +0000\r\nMessage-ID: <1@dkim.example>\r\n\r\n"
)
FORMS = {"simple": forms.Simple, "relaxed": forms.Relaxed}


def sign(content: bytes, signing: Signing, *, now: int) -> bytes:
    """Put a DKIM-Signature on top, by dkimpy's own canonical forms."""
    key = signing.key or letters.rsa_key()
    headers, body = dkim.rfc822_parse(content)
    canonical = FORMS[signing.body].canonicalize_body(body)
    length = signing.tags.get("l") or ""
    if length.isdigit():
        canonical = canonical[: int(length)]
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    algorithm = signing.algorithm or ("rsa-sha256" if is_rsa else "ed25519-sha256")
    digest = sha1 if algorithm.endswith("sha1") else sha256
    tags: dict[str, str | None] = {
        "v": "1",
        "a": algorithm,
        "c": f"{signing.header}/{signing.body}",
        "d": "dkim.example",
        "s": "sel",
        "t": str(now - 60),
        "h": ":".join(signing.names),
        "bh": b64encode(digest(canonical).digest()).decode(),
    }
    tags |= signing.tags
    chosen = [(name, text) for name, text in tags.items() if text is not None and name != "b"]
    value = signing.separator.join(f"{name}={text}" for name, text in chosen) + signing.separator + "b="
    field_ = b" " + value.encode()
    picked = dkim.select_headers(headers, [name.encode() for name in signing.names])
    lines = FORMS[signing.header].canonicalize_headers([*picked, (b"DKIM-Signature", field_ + b"\r\n")])
    data = b"".join(name + b":" + text for name, text in lines).removesuffix(b"\r\n")
    made = signing.tags.get("b") or b64encode(_make(key, algorithm, data)).decode()
    return b"DKIM-Signature:" + field_ + made.encode() + b"\r\n" + content


def _make(key: Any, algorithm: str, data: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        chosen = hashes.SHA1() if algorithm.endswith("sha1") else hashes.SHA256()
        return key.sign(data, padding.PKCS1v15(), chosen)
    made: bytes = key.sign(sha256(data).digest())
    return made


def dkim_zone(**texts: str | list[str]) -> Zone:
    """Keys by selector ('__' is a dot), beside the usual two."""
    zone: Zone = {
        "sel._domainkey.dkim.example": {"TXT": [letters.record(letters.rsa_key())]},
        "ed._domainkey.dkim.example": {"TXT": [letters.record(letters.ed25519_key())]},
    }
    for name, text in texts.items():
        values = text if isinstance(text, list) else [text]
        zone[f"{name}._domainkey.dkim.example"] = {"TXT": list(values)}
    return zone


def dkim_cases(dice: random.Random, now: int) -> Iterator[Case]:
    """Forms and bodies, changes on the way, tags of all kinds, keys of all kinds, several at once."""
    count = 0

    def case(what: str, content: bytes, zone: Zone | None = None) -> Case:
        nonlocal count
        count += 1
        return Case(f"dkim/{count}: {what}", zone or dkim_zone(), content, sender="ann@dkim.example")

    for body in BODIES:
        for header_form in FORMS:
            for body_form in FORMS:
                signing = Signing(header_form, body_form)
                yield case(f"{header_form}/{body_form} {body!r}", sign(LETTER + body, signing, now=now))
    ed25519 = Signing(key=letters.ed25519_key(), tags={"s": "ed"})
    for body in BODIES[:3]:
        yield case(f"ed25519 {body!r}", sign(LETTER + body, ed25519, now=now))
    for what, change in CHANGES.items():
        for form in FORMS:
            signed = sign(LETTER + BODIES[4], Signing(form, form), now=now)
            yield case(f"{form}: {what}", change(signed))
    for what, signing in _tagged(now):
        yield case(what, sign(LETTER + BODIES[0], signing, now=now))
    for what, text in _key_texts():
        yield case(f"key: {what}", sign(LETTER + BODIES[0], Signing(), now=now), dkim_zone(sel=text))
    for what, text in _ed_key_texts():
        yield case(f"key: {what}", sign(LETTER + BODIES[0], ed25519, now=now), dkim_zone(ed=text))
    yield case(
        "key times out", sign(LETTER, Signing(), now=now), {"sel._domainkey.dkim.example": {TIMEOUT: []}}
    )
    yield case("no key", sign(LETTER, Signing(tags={"s": "absent"}), now=now))
    for bits in (1024, 2048, 3072, 4096):
        signing = Signing(key=letters.rsa_key(bits), tags={"s": "bits"})
        zone = dkim_zone(bits=letters.record(letters.rsa_key(bits)))
        yield case(f"{bits} bits", sign(LETTER, signing, now=now), zone)
    yield case("two at once", sign(sign(LETTER, ed25519, now=now), Signing(), now=now))
    broken = replace(Signing(), tags={"s": "absent"})
    yield case("a good one below a bad one", sign(sign(LETTER, ed25519, now=now), broken, now=now))
    yield case("a bad one below a good one", sign(sign(LETTER, broken, now=now), Signing(), now=now))
    yield case("signed signature", sign(sign(LETTER, ed25519, now=now), _covering(), now=now))
    for number in range(30):
        forms_ = (dice.choice(list(FORMS)), dice.choice(list(FORMS)))
        body = b"".join(dice.choices([b"x", b" ", b"\t", b"\r\n", b"  ", b"yz"], k=dice.randrange(30)))
        signed = sign(LETTER + body, Signing(*forms_), now=now)
        if number % 3 == 0:
            at = dice.randrange(len(signed))
            signed = signed[:at] + dice.choice([b" ", b"z"]) + signed[at:]
        yield case(f"random {number} {forms_} {body!r}", signed)


def _covering() -> Signing:
    return Signing(names=("from", "dkim-signature"))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "body changed": lambda c: c.replace(b"Two", b"Six"),
    "blanks of the body changed": lambda c: c.replace(b"Two  blanks", b"Two blanks"),
    "lines added at the end": lambda c: c + b"\r\n\r\n",
    "text added at the end": lambda c: c + b"more\r\n",
    "subject changed": lambda c: c.replace(b"invitation", b"invoice"),
    "subject refolded": lambda c: c.replace(b"\t to\r\n  tea", b" to tea"),
    "name in capitals": lambda c: c.replace(b"\r\nTo:", b"\r\nTO:"),
    "unsigned field changed": lambda c: c.replace(b"<1@", b"<2@"),
    "second From on top": lambda c: b"From: eve@evil.example\r\n" + c,
    "second From below": lambda c: c.replace(b"\r\n\r\n", b"\r\nFrom: eve@evil.example\r\n\r\n", 1),
    "second Subject on top": lambda c: b"Subject: other\r\n" + c,
    "To gone": lambda c: c.replace(b"To: bob@far.example\r\n", b""),
    "From gone": lambda c: c.replace(b"From: Ann <ann@dkim.example>\r\n", b""),
    "signature folded": lambda c: c.replace(b"; bh=", b";\r\n\tbh="),
    "b= folded": lambda c: c.replace(b"b=", b"b=\r\n ", 2),
}


def _tagged(now: int) -> Iterator[tuple[str, Signing]]:
    tags: tuple[dict[str, str | None], ...] = (
        {"v": None},
        {"v": "2"},
        {"a": "rsa-sha512"},
        {"a": None},
        {"d": None},
        {"s": None},
        {"bh": None},
        {"b": "!!!"},
        {"bh": "AAAA"},
        {"q": "dns/txt"},
        {"q": "dns"},
        {"q": "other"},
        {"i": "@dkim.example"},
        {"i": "ann@sub.dkim.example"},
        {"i": "@other.example"},
        {"i": "dkim.example"},
        {"x": str(now + 600)},
        {"x": str(now - 30)},
        {"x": str(now - 120)},
        {"t": str(now + 86_400 * 30)},
        {"t": "yesterday"},
        {"x": "never"},
        {"t": None},
        {"l": "0"},
        {"l": "3"},
        {"l": "8"},
        {"l": "100"},
        {"l": "-1"},
        {"l": "x"},
        {"z": "From:a"},
        {"unknown": "tag"},
        {"c": None},
        {"c": "relaxed"},
        {"c": "nowsp/relaxed"},
        {"c": "relaxed/relaxed/relaxed"},
        {"d": "DKIM.example"},
        {"d": "sub.dkim.example"},
        {"d": "example"},
        {"s": "a.b"},
        {"h": "to:subject"},
        {"h": "from:"},
        {"h": "From : To : Subject : Date"},
    )
    for one in tags:
        yield f"tag {one}", Signing(tags=one)
    yield "over-signed", Signing(names=("from", "from", "to", "subject", "subject", "date"))
    yield "signed absent field", Signing(names=("from", "to", "reply-to"))
    yield "From unsigned", Signing(names=("to", "subject"))
    yield "no blanks between tags", Signing(separator=";")
    yield "tabs between tags", Signing(separator=";\t")
    yield "blanks before", Signing(separator=" ; ")
    yield "rsa-sha1", Signing(algorithm="rsa-sha1")
    yield "simple/simple by default", Signing("simple", "simple", tags={"c": None})
    yield "simple alone", Signing("simple", "simple", tags={"c": "simple"})
    yield "relaxed alone", Signing("relaxed", "simple", tags={"c": "relaxed"})


def _key_texts() -> Iterator[tuple[str, str | list[str]]]:
    good = letters.record(letters.rsa_key())
    other = letters.record(letters.rsa_key(2049))
    bare = good.removeprefix("v=DKIM1; ")
    public = good.partition("p=")[2]
    yield "without v=", bare
    yield "v= last", f"{bare}; v=DKIM1"
    yield "v=DKIM2", good.replace("DKIM1", "DKIM2")
    yield "v=dkim1", good.replace("DKIM1", "dkim1")
    yield "without k=", f"v=DKIM1; p={public}"
    yield "k=ed25519", good.replace("k=rsa", "k=ed25519")
    yield "k=RSA", good.replace("k=rsa", "k=RSA")
    yield "h=sha256", f"v=DKIM1; h=sha256; p={public}"
    yield "h=sha1", f"v=DKIM1; h=sha1; p={public}"
    yield "h=sha1:sha256", f"v=DKIM1; h=sha1:sha256; p={public}"
    yield "s=email", f"v=DKIM1; s=email; p={public}"
    yield "s=tlsrpt", f"v=DKIM1; s=tlsrpt; p={public}"
    yield "s=*", f"v=DKIM1; s=*; p={public}"
    yield "t=y", f"v=DKIM1; t=y; p={public}"
    yield "t=s", f"v=DKIM1; t=s; p={public}"
    yield "t=y:s", f"v=DKIM1; t=y:s; p={public}"
    yield "g=other", f"v=DKIM1; g=other; p={public}"
    yield "n= and unknown", f"v=DKIM1; n=note; zz=top; p={public}"
    yield "revoked", "v=DKIM1; p="
    yield "no p=", "v=DKIM1; k=rsa"
    yield "not base64", "v=DKIM1; p=!!!!"
    yield "no key inside", "v=DKIM1; p=AAAA"
    yield "another key", other
    yield "final semicolon", good + ";"
    yield "blanks in p=", f"v=DKIM1; p={public[:40]} {public[40:]}"
    yield "not a key", "hello"
    yield "empty", ""
    yield "p= twice", f"{good}; p={public}"
    yield "two records, good first", [good, other]
    yield "two records, good last", [other, good]
    yield "SPF beside it", ["v=spf1 -all", good]


def _ed_key_texts() -> Iterator[tuple[str, str]]:
    good = letters.record(letters.ed25519_key())
    public = good.partition("p=")[2]
    yield "ed25519 without k=", f"v=DKIM1; p={public}"
    yield "ed25519 with k=rsa", f"v=DKIM1; k=rsa; p={public}"
    yield "ed25519 too short", f"v=DKIM1; k=ed25519; p={public[:40]}"
    yield "rsa key for ed25519", letters.record(letters.rsa_key())


# ---- DMARC ----

DMARC_TAGS = (
    "p=none", "p=quarantine", "p=reject", "p=Reject", "p=bogus", "sp=none", "sp=reject", "sp=quarantine",
    "np=reject", "np=none", "sp=bogus", "adkim=s", "adkim=r", "aspf=s", "aspf=r", "t=y", "t=n", "psd=n",
    "psd=y", "psd=u", "pct=50", "rua=mailto:d@dmarc.example", "ruf=mailto:d@dmarc.example", "fo=1", "ri=3600",
    "x=y", "adkim=bad",
)  # fmt: skip
AUTHORS = ("dmarc.example", "sub.dmarc.example", "a.b.sub.dmarc.example", "absent.dmarc.example")


def dmarc_case(dice: random.Random, number: int, now: int) -> Case:
    author = dice.choice(AUTHORS)
    zone: Zone = {
        "dmarc.example": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"], "A": ["192.0.2.1"]},
        "sub.dmarc.example": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"], "A": ["192.0.2.1"]},
        "a.b.sub.dmarc.example": {"A": ["192.0.2.1"]},
        "other.example": {"TXT": ["v=spf1 +all"]},
        "_dmarc.dmarc.example": {"TXT": [dmarc_text(dice)]},
    }
    if dice.random() < 0.35:
        zone["_dmarc.sub.dmarc.example"] = {"TXT": [dmarc_text(dice)]}
    if dice.random() < 0.2:
        zone["_dmarc.example"] = {"TXT": [f"v=DMARC1; p=none; psd={dice.choice('yn')}; np=reject"]}
    special = number % 16
    if special == 3:
        zone["_dmarc.dmarc.example"]["TXT"].append(dmarc_text(dice))
    elif special == 7:
        zone["_dmarc.dmarc.example"]["TXT"].append("v=spf1 -all")
    elif special == 11:
        del zone["_dmarc.dmarc.example"]
    elif special == 15:
        zone["_dmarc.dmarc.example"] = {TIMEOUT: []}
    from_ = {
        5: f"Ann <ann@{author.upper()}>",
        9: f"ann@{author}, bob@{author}",
        13: f"ann@{author}, eve@other.example",
    }.get(special, f"ann@{author}")
    content = f"From: {from_}\r\nTo: b@far.example\r\nSubject: x\r\nDate: now\r\n\r\nx\r\n".encode()
    signer = dice.choice([None, "dmarc.example", "sub.dmarc.example", "other.example"])
    if signer is not None:
        zone[f"sel._domainkey.{signer}"] = {"TXT": [letters.record(letters.rsa_key())]}
        content = sign(content, Signing(tags={"d": signer}), now=now)
        if dice.random() < 0.2:
            content += b"changed\r\n"
    sender = dice.choice(["dmarc.example", "sub.dmarc.example", "other.example", "other.example"])
    text = {name: records.get("TXT") for name, records in zone.items() if name.startswith("_dmarc")}
    return Case(
        f"dmarc/{number}: {from_} by {signer} and {sender}: {text}",
        zone,
        content,
        ip=dice.choice(["192.0.2.1", "192.0.2.2"]),
        sender=f"x@{sender}",
    )


def dmarc_text(dice: random.Random) -> str:
    """A record, mostly a good one."""
    tags = [dice.choice(DMARC_TAGS[:3])] if dice.random() < 0.85 else []
    tags += dice.sample(DMARC_TAGS[3:], dice.randrange(4))
    version = dice.choice(["v=DMARC1"] * 14 + ["v=DMARC2", "v=dmarc1", " v=DMARC1", "V=DMARC1"])
    separator = dice.choice(["; ", "; ", ";", " ; "])
    return separator.join([version, *tags]) + dice.choice(["", ";", "; "])


# ---- ARC ----


def arc_cases(now: int) -> Iterator[Case]:
    """Chains of one to three sets, and what breaks them."""
    zone: Zone = {
        "seal._domainkey.one.example": {"TXT": [letters.record(letters.rsa_key())]},
        "seal._domainkey.two.example": {"TXT": [letters.record(letters.rsa_key(2049))]},
        "seal._domainkey.three.example": {"TXT": [letters.record(letters.rsa_key())]},
    }
    for length in (1, 2, 3):
        whole = chain(length, now)
        yield Case(f"arc/{length} whole", zone, whole, sender="ann@dkim.example")
        for what, change in ARC_CHANGES.items():
            yield Case(f"arc/{length} {what}", zone, change(whole), sender="ann@dkim.example")
    for name in zone:
        without = {key: value for key, value in zone.items() if key != name}
        yield Case(f"arc/3 without {name}", without, chain(3, now), sender="ann@dkim.example")
    for length in (1, 2):
        for status in ("none", "pass", "fail", "bogus"):
            content = chain(length, now, last=status)
            yield Case(f"arc/{length} says {status}", zone, content, sender="ann@dkim.example")


ARC_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "body changed": lambda c: c + b"more\r\n",
    "From changed": lambda c: c.replace(b"ann@dkim", b"eve@dkim"),
    "unsigned field added": lambda c: b"X-A: b\r\n" + c,
    "results changed": lambda c: c.replace(b"spf=pass", b"spf=fail", 1),
    "oldest results changed": lambda c: b"spf=fail".join(c.rsplit(b"spf=pass", 1)),
    "no seal": lambda c: c.replace(b"ARC-Seal:", b"X-Seal:", 1),
    "no signature": lambda c: c.replace(b"ARC-Message-Signature:", b"X-Signature:", 1),
    "no results": lambda c: c.replace(b"ARC-Authentication-Results:", b"X-Results:", 1),
    "set twice": lambda c: c[: c.index(b"\r\nARC-Message") + 2] + c,
    "i=0": lambda c: c.replace(b"i=1;", b"i=0;"),
    "gap": lambda c: c.replace(b"i=1;", b"i=4;"),
    "cv=pass first": lambda c: c.replace(b"cv=none", b"cv=pass"),
    "cv in capitals": lambda c: c.replace(b"cv=none", b"cv=NONE"),
    "names in capitals": lambda c: c.replace(b"ARC-Seal", b"ARC-SEAL"),
    "refolded": lambda c: c.replace(b"; s=seal", b";\r\n\ts=seal"),
    "algorithm unknown": lambda c: c.replace(b"a=rsa-sha256", b"a=rsa-sha3", 1),
    "signature broken": lambda c: c.replace(b" b=", b" b=AAAA", 1),
    "tabs before i=": lambda c: c.replace(b" i=1;", b"\ti=1;"),
    "nothing before i=": lambda c: c.replace(b": i=1;", b":i=1;"),
}


def chain(length: int, now: int, *, last: str = "") -> bytes:
    """A message with a chain, sealed by one., two. and three.example."""
    content = LETTER + b"Hello.\r\n"
    signers: Sequence[tuple[str, rsa.RSAPrivateKey]] = (
        ("one.example", letters.rsa_key()),
        ("two.example", letters.rsa_key(2049)),
        ("three.example", letters.rsa_key()),
    )
    sets: list[bytes] = []
    for number, (domain, key) in enumerate(signers[:length], 1):
        status = last if last and number == length else "none" if number == 1 else "pass"
        content = _sealed(content, sets, domain, key, number=number, status=status, now=now) + content
    return content


def _sealed(
    content: bytes,
    sets: list[bytes],
    domain: str,
    key: rsa.RSAPrivateKey,
    *,
    number: int,
    status: str,
    now: int,
) -> bytes:
    headers, body = dkim.rfc822_parse(content)
    record = (
        f"ARC-Authentication-Results: i={number}; {domain}; spf=pass smtp.mailfrom=dkim.example\r\n".encode()
    )
    body_hash = b64encode(sha256(forms.Relaxed.canonicalize_body(body)).digest()).decode()
    place = f"d={domain}; s=seal; t={now - 60 + number}"
    own = f"ARC-Message-Signature: i={number}; a=rsa-sha256; c=relaxed/relaxed; {place};"
    own += f" h=from:to:subject:date; bh={body_hash}; b="
    picked = dkim.select_headers(headers, [b"from", b"to", b"subject", b"date"])
    signature = _signed_line(own.encode(), _relaxed(picked), key)
    before = b"".join(sets) if status != "fail" else b""
    scope = before + _relaxed_line(record) + _relaxed_line(signature)
    seal = _signed_line(f"ARC-Seal: i={number}; a=rsa-sha256; {place}; cv={status}; b=".encode(), scope, key)
    sets += [_relaxed_line(record), _relaxed_line(signature), _relaxed_line(seal)]
    return seal + signature + record


def _signed_line(line: bytes, scope: bytes, key: rsa.RSAPrivateKey) -> bytes:
    data = scope + _relaxed_line(line + b"\r\n").removesuffix(b"\r\n")
    return line + b64encode(_make(key, "rsa-sha256", data)) + b"\r\n"


def _relaxed_line(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    return _relaxed([(name, value)])


def _relaxed(headers: Any) -> bytes:
    return b"".join(name + b":" + value for name, value in forms.Relaxed.canonicalize_headers(headers))
