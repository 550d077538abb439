"""DMARC aggregate reports: octets become a frozen report.

Owns the nouns of a report and the reading of one, in the schema of RFC 9990 and in the
older one of RFC 7489: names count without their namespace, elements it does not know are
passed over, words it does not know are ''. Refuses with ReportSyntax, which says what is
wrong: a document type or an entity, more than the limits below, what is no report.
RFC 9990 3 and its appendix A.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from xml.parsers import expat

from server.mail.unpacking import Unpackable, unpack

NAMESPACE = "urn:ietf:params:xml:ns:dmarc-2.0"
MAX_PACKED_OCTETS = 10 << 20
MAX_XML_OCTETS = 8 << 20
MAX_ELEMENTS = 250_000
MAX_DEPTH = 20
MAX_RECORDS = 10_000
MAX_RESULTS = 100  # RFC 9990 3.1.3: no more signatures than that for a row
MAX_TEXT = 1000  # characters of one element that are kept
MAX_COUNT = (1 << 32) - 1
MAX_SECONDS = 253_402_300_799  # the end of the year 9999

DISPOSITIONS = frozenset({"none", "pass", "quarantine", "reject"})
POLICIES = frozenset({"none", "quarantine", "reject"})
DKIM_RESULTS = frozenset({"none", "pass", "fail", "policy", "neutral", "temperror", "permerror"})
SPF_RESULTS = DKIM_RESULTS | {"softfail"}
# RFC 7489's are read too; it has three that RFC 9990 has no more.
REASONS = frozenset(
    {
        "local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder", "forwarded",
        "sampled_out",
    }
)  # fmt: skip


class ReportSyntax(ValueError):
    """What is no aggregate report; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Who reports, and about which time: seconds of UTC since 1970, begin and end."""

    org_name: str
    email: str
    report_id: str
    begin: int
    end: int
    extra_contact_info: str = ""
    errors: tuple[str, ...] = ()
    generator: str = ""


@dataclass(frozen=True, slots=True)
class PolicyPublished:
    """The policy that the reporter found, '' for what it does not tell. adkim, aspf: 'r' or 's'."""

    domain: str
    p: str = ""
    sp: str = ""
    np: str = ""
    adkim: str = ""
    aspf: str = ""
    fo: str = ""
    is_testing: bool = False
    discovery_method: str = ""
    version_published: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the disposition is not what the policy says."""

    type: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class DkimResult:
    """One signature's result, before any question of alignment."""

    domain: str
    selector: str
    result: str
    human_result: str = ""


@dataclass(frozen=True, slots=True)
class SpfResult:
    """SPF's result. scope: 'mfrom', 'helo' or ''."""

    domain: str
    result: str
    scope: str = ""
    human_result: str = ""


@dataclass(frozen=True, slots=True)
class Extension:
    """The name and definition of an extension; what it holds is passed over."""

    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Record:
    """How many messages of one kind came from one address. dkim, spf: the aligned results.

    envelope_from: None where it is not told, '' for the null reverse-path.
    """

    source_ip: str
    count: int
    disposition: str
    dkim: str
    spf: str
    header_from: str
    envelope_from: str | None = None
    envelope_to: str | None = None
    reasons: tuple[Reason, ...] = ()
    dkim_results: tuple[DkimResult, ...] = ()
    spf_results: tuple[SpfResult, ...] = ()
    extensions: tuple[Extension, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the messages passed DMARC: one aligned identifier did."""
        return "pass" in (self.dkim, self.spf)


@dataclass(frozen=True, slots=True)
class AggregateReport:
    """A whole report. namespace: the root's, '' for the older schema without one."""

    metadata: Metadata
    policy: PolicyPublished
    records: tuple[Record, ...]
    version: str = ""
    namespace: str = ""
    extensions: tuple[Extension, ...] = ()


def parse_aggregate(octets: bytes) -> AggregateReport:
    """Return the report in octets: XML as it is, in gzip, or in a zip archive; raises ReportSyntax."""
    if len(octets) > MAX_PACKED_OCTETS:
        raise ReportSyntax(f"larger than {MAX_PACKED_OCTETS} octets")
    try:
        xml = unpack(octets, limit=MAX_XML_OCTETS, suffix=".xml")
    except Unpackable as error:
        raise ReportSyntax(str(error)) from None
    root = _read_xml(xml)
    if root.name != "feedback":
        raise ReportSyntax(f"the root element is {_said(root.name)}, not 'feedback'")
    records = tuple(_record(one, number) for number, one in enumerate(root.all("record"), 1))
    if not records:
        raise ReportSyntax("there is no record in it")
    return AggregateReport(
        metadata=_metadata(root.one("report_metadata")),
        policy=_policy(root.one("policy_published")),
        records=records,
        version=root.text_of("version"),
        namespace=root.attributes.get("xmlns", "")[:MAX_TEXT],
        extensions=_extensions(root),
    )


@dataclass(slots=True)
class _Element:
    """An element with what is in it; name without prefix."""

    name: str
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list)
    kept: int = 0
    inside: list[_Element] = field(default_factory=list)

    def all(self, name: str) -> Iterator[_Element]:
        return (one for one in self.inside if one.name == name)

    def find(self, name: str) -> _Element | None:
        return next(self.all(name), None)

    def one(self, name: str) -> _Element:
        found = self.find(name)
        if found is None:
            raise ReportSyntax(f"{_said(self.name)} has no {name!r}")
        return found

    def text_of(self, name: str) -> str:
        found = self.find(name)
        return "" if found is None else found.content

    def optional(self, name: str) -> str | None:
        found = self.find(name)
        return None if found is None else found.content

    def word_of(self, name: str, known: frozenset[str]) -> str:
        word = self.text_of(name).lower()
        return word if word in known else ""

    @property
    def content(self) -> str:
        return "".join(self.text).strip()


class _Builder:
    """Makes elements of what the XML parser tells, within the limits."""

    def __init__(self) -> None:
        self.root: _Element | None = None
        self._open: list[_Element] = []
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise ReportSyntax(f"more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            raise ReportSyntax(f"elements are nested more than {MAX_DEPTH} deep")
        element = _Element(name.rpartition(":")[2], _attributes(name, attributes))
        if self._open:
            parent = self._open[-1]
            parent.inside.append(element)
            if element.name == "record" and len(self._open) == 1:
                self._count_records(parent)
        else:
            self.root = element
        self._open.append(element)

    def _count_records(self, root: _Element) -> None:
        root.kept += 1
        if root.kept > MAX_RECORDS:
            raise ReportSyntax(f"more than {MAX_RECORDS} records")

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        element = self._open[-1]
        room = MAX_TEXT - element.kept
        if room > 0 and not element.inside:
            text = text[:room] if element.text else text.lstrip()[:room]
            if text:
                element.text.append(text)
                element.kept += len(text)


def _attributes(name: str, given: dict[str, str]) -> dict[str, str]:
    """Return the few attributes that are looked at; 'xmlns' is the element's own namespace."""
    prefix = name.rpartition(":")[0]
    wanted = {"name": "name", "definition": "definition", f"xmlns:{prefix}" if prefix else "xmlns": "xmlns"}
    return {wanted[key]: value[:MAX_TEXT] for key, value in given.items() if key in wanted}


def _read_xml(xml: bytes) -> _Element:
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    # A document type is where entities are declared, and entities are how small files become large.
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(xml.lstrip(b" \t\r\n"), True)
    except ReportSyntax:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ReportSyntax(f"not well-formed XML: {error}") from None
    if builder.root is None:
        raise ReportSyntax("there is no element in it")
    return builder.root


def _refuse_doctype(*_: object) -> None:
    raise ReportSyntax("it declares a document type, which no report needs")


def _said(text: str) -> str:
    return ascii(text[:60])


def _number(text: str, what: str, limit: int) -> int:
    digits = text.partition(".")[0]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20 or int(digits) > limit:
        raise ReportSyntax(f"{what} is {_said(text)}, which is no number of use")
    return int(digits)


def _metadata(element: _Element) -> Metadata:
    span = element.one("date_range")
    report_id = element.text_of("report_id")
    if not report_id:
        raise ReportSyntax("'report_metadata' has no 'report_id'")
    return Metadata(
        org_name=element.text_of("org_name"),
        email=element.text_of("email"),
        report_id=report_id,
        begin=_number(span.text_of("begin"), "begin of the date range", MAX_SECONDS),
        end=_number(span.text_of("end"), "end of the date range", MAX_SECONDS),
        extra_contact_info=element.text_of("extra_contact_info"),
        errors=tuple(one.content for one in element.all("error"))[:MAX_RESULTS],
        generator=element.text_of("generator"),
    )


def _policy(element: _Element) -> PolicyPublished:
    domain = _domain(element.text_of("domain"))
    if not domain:
        raise ReportSyntax("'policy_published' has no 'domain'")
    return PolicyPublished(
        domain=domain,
        p=element.word_of("p", POLICIES),
        sp=element.word_of("sp", POLICIES),
        np=element.word_of("np", POLICIES),
        adkim=element.word_of("adkim", frozenset("rs")),
        aspf=element.word_of("aspf", frozenset("rs")),
        fo=element.text_of("fo"),
        is_testing=element.text_of("testing").lower() == "y",
        discovery_method=element.word_of("discovery_method", frozenset({"psl", "treewalk"})),
        version_published=element.text_of("version_published"),
    )


def _domain(text: str) -> str:
    return text.rstrip(".").lower()[:255]


def _record(element: _Element, number: int) -> Record:
    row = element.one("row")
    evaluated = row.find("policy_evaluated") or _Element("policy_evaluated", {})
    identifiers = element.find("identifiers") or _Element("identifiers", {})
    results = element.find("auth_results") or _Element("auth_results", {})
    return Record(
        source_ip=_address(row.text_of("source_ip"), number),
        count=_number(row.text_of("count"), f"count of record {number}", MAX_COUNT),
        disposition=evaluated.word_of("disposition", DISPOSITIONS),
        dkim=evaluated.word_of("dkim", frozenset({"pass", "fail"})),
        spf=evaluated.word_of("spf", frozenset({"pass", "fail"})),
        header_from=_domain(identifiers.text_of("header_from")),
        envelope_from=identifiers.optional("envelope_from"),
        envelope_to=identifiers.optional("envelope_to"),
        reasons=tuple(map(_reason, evaluated.all("reason")))[:MAX_RESULTS],
        dkim_results=tuple(map(_dkim, results.all("dkim")))[:MAX_RESULTS],
        spf_results=tuple(map(_spf, results.all("spf")))[:MAX_RESULTS],
        extensions=_extensions(element),
    )


def _address(text: str, number: int) -> str:
    try:
        found = ip_address(text.strip("[]").removeprefix("IPv6:").partition("%")[0])
    except ValueError:
        raise ReportSyntax(f"source_ip of record {number} is {_said(text)}, which is no address") from None
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _reason(element: _Element) -> Reason:
    # RFC 9990 3.1.6: what is in no list is 'other'.
    return Reason(element.word_of("type", REASONS) or "other", element.text_of("comment"))


def _dkim(element: _Element) -> DkimResult:
    return DkimResult(
        domain=_domain(element.text_of("domain")),
        selector=element.text_of("selector"),
        result=element.word_of("result", DKIM_RESULTS),
        human_result=element.text_of("human_result"),
    )


def _spf(element: _Element) -> SpfResult:
    result = element.text_of("result").lower()
    # Words of before RFC 7208 are still sent.
    result = {"hardfail": "fail", "error": "temperror", "unknown": "permerror"}.get(result, result)
    return SpfResult(
        domain=_domain(element.text_of("domain")),
        result=result if result in SPF_RESULTS else "",
        scope=element.word_of("scope", frozenset({"mfrom", "helo"})),
        human_result=element.text_of("human_result"),
    )


def _extensions(element: _Element) -> tuple[Extension, ...]:
    """Return what earlier drafts wrote: extensions with a name and a definition each."""
    around = element.find("extensions")
    found = () if around is None else around.all("extension")
    named = (Extension(one.attributes.get("name", ""), one.attributes.get("definition", "")) for one in found)
    return tuple(named)[:MAX_RESULTS]
