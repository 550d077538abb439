"""The parsers' invariants under mutation: a short fixed run always, a minute a target in the long part."""

import base64
import gzip
import io
import os
import zipfile

import pytest

from server.mail.tls_report import pack, write_report
from tests.fuzz import (
    targets_auth,
    targets_bounces,
    targets_doors,
    targets_imap,
    targets_journal,
    targets_mail,
    targets_rules,
    targets_smtp,
    targets_transport,
)
from tests.fuzz.engine import OCTETS_LIMIT, Engine, Target
from tests.mail.test_tls_report import REPORT as TLS_REPORT
from tests.mail.test_tls_report import mail as tls_mail
from tests.transport.authority import make

MESSAGE = (
    b"From: Ann <ann@example.org>, group: b@example.net;\r\nTo: =?utf-8?q?J=C3=B6rg?= <j@example.org>\r\n"
    b"Subject: =?iso-8859-1?b?5Q==?= x\r\n y\r\nDate: Mon, 23 Nov 2026 07:00:00 +0000\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\npre\r\n--b\r\nContent-Type: text/html;'
    b" charset*0=utf; charset*1=-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>=C3=B6</p>\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nbody\r\n--b--\r\npost\r\n"
)
SIGNED = (
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.org; s=one;\r\n"
    b"\th=from:to:subject; bh=AAAA; b=BBBB; t=1; x=99999999999; l=10\r\n"
    b"Authentication-Results: mail.example.com 1 (c); spf=pass smtp.mailfrom=a@b; dkim=fail (x)\r\n"
    b"From: a@example.org\r\n\r\nbody  text \t\r\n\r\n"
)
REPORT = (
    b'Content-Type: multipart/report; report-type=delivery-status; boundary="r"\r\n\r\n--r\r\n'
    b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n"
    b"Final-Recipient: rfc822; a@b.example\r\nAction: failed\r\nStatus: 5.1.1\r\n"
    b"Diagnostic-Code: smtp; 550 5.1.1 no\r\n\r\n--r--\r\n<html><body>&lt;b&gt;</body></html>"
)
AGGREGATE = (
    b'<?xml version="1.0" encoding="UTF-8"?><feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0"><version>1.0'
    b"</version><report_metadata><org_name>R</org_name><email>r@r.example</email><report_id>1</report_id>"
    b"<date_range><begin>1</begin><end>2</end></date_range></report_metadata><policy_published><domain>a.example"
    b"</domain><p>none</p><np>reject</np><testing>n</testing></policy_published><record><row><source_ip>192.0.2.1"
    b"</source_ip><count>2</count><policy_evaluated><disposition>none</disposition><dkim>fail</dkim><spf>pass"
    b"</spf><reason><type>other</type><comment>c</comment></reason></policy_evaluated></row><identifiers>"
    b"<header_from>a.example</header_from></identifiers><auth_results><dkim><domain>a.example</domain><selector>s"
    b"</selector><result>pass</result></dkim><spf><domain>a.example</domain><result>pass</result></spf>"
    b"</auth_results></record></feedback>"
)
IN_MAIL = (
    b"Content-Type: application/gzip; name=r.xml.gz\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(gzip.compress(AGGREGATE, mtime=0))
)
with io.BytesIO() as _file:
    with zipfile.ZipFile(_file, "w", zipfile.ZIP_DEFLATED) as _archive:
        _archive.writestr(zipfile.ZipInfo("r.xml"), AGGREGATE)
    ZIPPED = _file.getvalue()
XML_WORDS = [
    b"<record>", b"</record>", b"<row>", b"</feedback>", b"<!DOCTYPE f [", b'<!ENTITY a "b">', b"&a;",
    b"&#0;", b"&#55296;", b"]]>", b"<![CDATA[", b"<!--", b"-->", b"<?xml", b' encoding="utf-16"',
    b' xmlns:a="b"',
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"\xff\xff\xff\xff", b"\0\0\0\0", b"9" * 30,
]  # fmt: skip
MAIL_WORDS = [
    b"--b",
    b"--b--",
    b"\r\n",
    b"\r\n\r\n",
    b"boundary=",
    b"multipart/mixed",
    b"message/rfc822",
    b"=?utf-8?b?",
    b"?=",
    b"(",
    b")",
    b'"',
    b"\\",
    b"<",
    b">",
    b"@",
    b",",
    b";",
    b":",
    b"=",
    b"*0*=",
    b"%41",
    b"\xff",
    b"\0",
    b"quoted-printable",
    b"base64",
    b"text/plain",
]
SMTP_WORDS = [
    b"MAIL FROM:<",
    b"RCPT TO:<",
    b">",
    b" SIZE=",
    b" BODY=8BITMIME",
    b" SMTPUTF8",
    b" RET=FULL",
    b" ENVID=",
    b" NOTIFY=NEVER",
    b" ORCPT=rfc822;",
    b"+2B",
    b"@",
    b'"',
    b"\\",
    b"[IPv6:::1]",
    b"[127.0.0.1]",
    b"EHLO ",
    b"BDAT 10 LAST",
    b"AUTH PLAIN ",
    b"\xc3\xb6",
    b"\0",
    b"\r",
    b"\n",
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"..",
]
IMAP_WORDS = [
    b"A1 ",
    b"UID ",
    b"FETCH 1:* (",
    b"BODY.PEEK[",
    b"HEADER.FIELDS (",
    b"]<0.10>",
    b"{3}\r\n",
    b"{3+}\r\n",
    b")",
    b"(",
    b'"',
    b"\\",
    b"SEARCH ",
    b"OR ",
    b"NOT ",
    b"CHARSET UTF-8 ",
    b"STORE 1 +FLAGS (\\Seen)",
    b"APPEND INBOX ",
    b"LIST (",
    b"RETURN (",
    b"*",
    b"%",
    b"4294967295",
    b"1:4294967295",
    b"&AOk-",
    b"\r\n",
    b"\n",
    b"\0",
    b"NIL",
    b"SINCE 1-Feb-2026",
    b"AUTHENTICATE PLAIN ",
    b"IDLE\r\nDONE\r\n",
]
AUTH_WORDS = [
    b"v=DMARC1;",
    b"p=reject;",
    b"sp=none;",
    b"np=quarantine",
    b"psd=y",
    b"t=y",
    b"rua=mailto:a@b",
    b"v=DKIM1;",
    b"k=ed25519;",
    b"p=",
    b"DKIM-Signature:",
    b"Authentication-Results: ",
    b"mail.example.com",
    b";",
    b"(",
    b")",
    b"\\",
    b'"',
    b"=",
    b"\r\n ",
    b"\r\n",
    b"\t",
    b"  ",
    b"h=from",
    b"l=",
    b"x=",
    b"a=rsa-sha1",
]

REPLY_WORDS = [
    b"220 mx.peer.test\r\n",
    b"250-PIPELINING\r\n",
    b"250-SIZE 100\r\n",
    b"250-DSN\r\n",
    b"250 OK\r\n",
    b"250 2.1.5 ok\r\n",
    b"354 go on\r\n",
    b"421 4.3.2 bye\r\n",
    b"550-5.1.1 no\r\n",
    b"550 5.1.1 no\r\n",
    b"999 \r\n",
    b"\n",
    b"-",
    b"\xff",
]
RULE_WORDS = [
    b"[[rule]]\n",
    b"[[[[[[[[",
    b"{{{",
    b'name = "a"\n',
    b'stage = ["rcpt", "message"]\n',
    b'when = "tls && recipient_count > 1"\n',
    b"when = '''subject.contains(\"x\")'''\n",
    b"header_names.exists(n, n == 'x')",
    b"((((((((",
    b"!!!!!!!!",
    b"- - - -",
    b"9223372036854775808",
    b" || ",
    b" ? ",
    b" in ",
    b'"""',
    b"'''",
    b"\\u0000",
    b"\n",
    b"=",
    b".",
    b"#",
    b'action = "reject"\n',
    b'header = "X-A: b"\n',
    b"code = 451\n",
]
JSON_WORDS = [
    b"null",
    b"true",
    b"1e999",
    b"-1",
    b"12345678901234567890",
    b'"\\u0000"',
    b'"\\ud800"',
    b"[" * 300,
    b'{"a":' * 300,
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b'{"operation": "status", "arguments": {}}\n',
    b'"to"',
    b'"inbox_id"',
    b'"quota_octets"',
]

TARGETS: dict[str, tuple[Target, list[bytes], list[bytes]]] = {
    "smtp-commands": (
        targets_smtp.check_grammar,
        [
            b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=x+2By",
            b'RCPT TO:<@a.example,@b.example:"quo ted"@[IPv6:::1]> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b',
            b"EHLO [127.0.0.1]",
            b"BDAT 100 LAST",
            b"AUTH PLAIN AGEAYg==",
            b"VRFY ann",
        ],
        SMTP_WORDS,
    ),
    "smtp-data": (
        targets_smtp.check_data,
        [MESSAGE + b".\r\nMAIL FROM:<>\r\n", b".\r\n", b"..a\r\n.b\r\n.\r\n", b"a\n.\nb\r.\r\r\n.\r\n"],
        SMTP_WORDS,
    ),
    "smtp-loose-data": (
        targets_smtp.check_loose,
        [MESSAGE + b".\r\nMAIL FROM:<>\r\n", b"a\n.\nb\r.\r\r\n.\r\n", b"a: b\r\n\r\n\0\n..\r\n\r.\r\n"],
        SMTP_WORDS,
    ),
    "recoding": (
        targets_mail.check_recoding,
        [
            MESSAGE,
            b"Content-Type: image/x\r\nContent-Transfer-Encoding: binary\r\n\r\n\0\n",
            b"Content-Transfer-Encoding: binary\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
            b"Content-Transfer-Encoding: binary\r\n\r\n" + b"x" * 1200 + b"\r\n--b--\r\n",
            SIGNED,
        ],
        [*MAIL_WORDS, b"Content-Transfer-Encoding: binary\r\n", b"multipart/signed"],
    ),
    "imap": (
        targets_imap.check_grammar,
        [
            b'A1 LOGIN "a b" {3+}\r\nabc\r\n',
            b"a UID FETCH 1:*,5 (FLAGS BODY.PEEK[1.2.HEADER.FIELDS.NOT (From To)]<1.20> RFC822.SIZE)\r\n",
            b'b SEARCH CHARSET UTF-8 OR (FROM "x" NOT SEEN) SINCE 1-Feb-2026 HEADER X {1}\r\ny\r\n',
            b'c APPEND "Sent" (\\Seen $x) " 1-Feb-2026 10:00:00 +0100" {4}\r\nabcd\r\n',
            b'd LIST (SPECIAL-USE) "" (% "*") RETURN (STATUS (MESSAGES))\r\n',
            b"e STORE 1,3:4 +FLAGS.SILENT (\\Deleted kw)\r\nf IDLE\r\nDONE\r\n",
        ],
        IMAP_WORDS,
    ),
    "mime": (targets_mail.check_structure, [MESSAGE, REPORT, b"\r\n", b"x", SIGNED], MAIL_WORDS),
    "addresses": (
        targets_mail.check_address,
        [
            b'Ann (c) <"a b"@example.org>, g: x@y.example, @r.example:z@q.example;',
            "jörg@exämple.org".encode(),
        ],
        MAIL_WORDS,
    ),
    "auth-records": (
        targets_auth.check_records,
        [
            b"v=DMARC1; p=reject; sp=none; np=quarantine; psd=n; t=y; rua=mailto:a@b.example",
            b"a.b.c.d.e.f.g.h.i",
        ],
        AUTH_WORDS,
    ),
    "auth-header": (
        targets_auth.check_header,
        [SIGNED, MESSAGE, SIGNED.replace(b"Authentication", b"X-Authentication") + SIGNED],
        [*AUTH_WORDS, b"Bcc: a@b\r\n", b"X-Bcc: a@b\r\n"],
    ),
    "canonical": (
        targets_auth.check_canonical,
        [b"a  b \t\r\n\r\n\r\n", b"", b"\r\n", b" \r\n\t"],
        AUTH_WORDS,
    ),
    "aggregate": (
        targets_auth.check_aggregate,
        [AGGREGATE, gzip.compress(AGGREGATE, mtime=0), ZIPPED, IN_MAIL],
        XML_WORDS,
    ),
    "reports": (targets_auth.check_reports, [REPORT, MESSAGE], MAIL_WORDS),
    "bounce": (
        targets_bounces.check_bounce,
        [
            b"From: MAILER-DAEMON@x.test\r\nSubject: Undelivered Mail Returned to Sender\r\nContent-Type: "
            b"multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\r\nno\r\n--b\r\n"
            b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x.test\r\n\r\n"
            b"Final-Recipient: rfc822; a@b.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n",
            b"From: postmaster@x.test\r\nSubject: failure notice\r\n\r\n<a@b.test>:\r\n550 no such user\r\n",
        ],
        MAIL_WORDS,
    ),
    "sts-policy": (
        targets_transport.check_policy,
        [
            b"version: STSv1\r\nmode: enforce\r\nmx: *.example.net\r\nmax_age: 604800\r\n",
            b"v=STSv1; id=20160831085700Z;",
            b"v=TLSRPTv1; rua=mailto:a@b.example,https://c.example/x",
        ],
        [b"\n", b"mx: ", b"mode: none", b"max_age: 1", b"; ", b"*.", b"=", b"%2B", b"rua="],
    ),
    "tls-report": (
        targets_transport.check_tls_report,
        [
            write_report(TLS_REPORT),
            pack(write_report(TLS_REPORT)),
            tls_mail("application/tlsrpt+gzip", pack(write_report(TLS_REPORT))),
        ],
        [b'"', b"[", b"]", b"{}", b"null", b"1e99", b"-1", b"\\ud800", b'"policies":', b'"mx-host":'],
    ),
    "certificate": (
        targets_transport.check_certificate,
        [make("mx.test", names=["mx.test"], ca=True).der, make("x", path_length=1, ca=True).key_der],
        [b"\x30\x82", b"\xa0\x03", b"\x02\x01\x02", b"\x06\x03\x55\x1d", b"\xff\xff\xff"],
    ),
    "lists": (
        targets_rules.check_lists,
        [
            b"192.0.2.0/24\n2001:db8::/32\n::ffff:192.0.2.1",
            b"example.net\n*.example.net # all\n@example.net",
            b"a@b",
        ],
        [b"*.", b"@", b"/", b":", b"::ffff:", b"%", b"\n", b"."],
    ),
    "names": (
        targets_rules.check_names,
        [
            b"bl.example=127.0.[0..1].[2;4..11]*5\nmx.example\n[192.0.2.1]\n[IPv6:2001:db8::1]",
            b"zen.example\n127.0.0.2\n2001:db8::1",
        ],
        [b"\x7f\x00\x00\x02", b"\x7f\xff\xff\xfe", b"[", b"]", b"..", b";", b"*", b"=", b"\n", b"IPv6:"],
    ),
    "rules": (
        targets_rules.check_rules,
        [
            b'[[rule]]\nname = "a"\nstage = "message"\nwhen = "size_octets > 10 && !tls"\naction = "tag"\n'
            b'keyword = "Big"\nheader = "X-Big: yes"\n',
            b'[[rule]]\nname = "b"\nstage = ["rcpt", "mail"]\nwhen = \'sender_domain in ["a", "b"]\'\n'
            b'action = "reject"\ncode = 550\ntext = "No"\non_error = "skip"\n',
            b'[[rule]]\nname = "c"\nstage = "message"\nwhen = \'recipients.exists(r, r.startsWith("x"))\'\n'
            b'action = "redirect"\ntarget = "a@b.example"\nenabled = true\n',
            b'[[list]]\nname = "l"\nkind = "networks"\nvalues = ["192.0.2.0/24"]\n[[rule]]\nname = "d"\n'
            b'stage = "connect"\nwhen = \'!client_ip.in_list("l")\'\naction = "limit"\nlimit = 2\n'
            b'period_seconds = 60\nper = "client_ip"\n',
            b'[[rule]]\nname = "e"\nstage = "submit"\nwhen = \'subject.matches("^a+b?$") && sent_last_hour > '
            b'limit_key_hour\'\naction = "pause"\nsubject = "identity"\n',
        ],
        RULE_WORDS,
    ),
    "journal": (targets_journal.check_segment, [targets_journal.SEGMENT], targets_journal.WORDS),
    "journal-records": (
        targets_journal.check_record,
        [targets_journal.PAYLOAD],
        targets_journal.PAYLOAD_WORDS,
    ),
    "smtp-sessions": (
        targets_doors.check_session,
        [
            b"\x00\xffEHLO a.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
            b"Subject: x\r\n\r\n..y\r\n.\r\nQUIT\r\n",
            b"\x00\x05HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nBDAT 5\r\nabc\r\nBDAT 3 LAST\r\nd\r\n"
            b"RSET\r\nNOOP\r\nVRFY x\r\nHELP\r\n",
            b"\x03\x40EHLO a.example\r\nAUTH PLAIN AGFubkBleGFtcGxlLm9yZwBwZW5jaWw=\r\n"
            b"MAIL FROM:<ann@example.org>"
            b" SIZE=10 RET=HDRS\r\nRCPT TO:<c@d.example> NOTIFY=NEVER\r\nDATA\r\n"
            + b"x" * 600
            + b"\r\n.\r\n",
            b"\x03\x40EHLO a.example\r\nAUTH LOGIN\r\nYW5uQGV4YW1wbGUub3Jn\r\ncGVuY2ls\r\n"
            b"STARTTLS\r\nGET / HTTP/1.1\r\n",
            b"\x04\x30LHLO a.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.org>\r\n"
            b"RCPT TO:<b@example.org>\r\nRCPT TO:<a@example.org>\r\n"
            b"DATA\r\nx\r\n.\r\nMAIL FROM:<a@b.example>\r\n"
            b"RCPT TO:<b@example.org>\r\nBDAT 3 LAST\r\na\r\nHELP\r\n",
            b"\x04\x30XCLIENT ADDR=203.0.113.1 NAME=a.example PORT=25 PROTO=ESMTP HELO=a+2Bb\r\nLHLO b\r\n",
            b"\x00\x30EHLO a\r\nXCLIENT ADDR=IPV6:2001:db8::1 NAME=[UNAVAILABLE]\r\n"
            b"MAIL FROM:<>\r\nXCLIENT X\r\n",
        ],
        [
            *SMTP_WORDS,
            b"DATA\r\n",
            b"BDAT 4\r\n",
            b"BDAT 0 LAST\r\n",
            b"RSET\r\n",
            b"RCPT TO:<c@d.example>\r\n",
        ],
    ),
    "smtp-replies": (
        targets_doors.check_replies,
        [
            b"\x04220 mx.peer.test\r\n250-mx\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n"
            b"354 go\r\n250 ok\r\n",
            b"\x27220 mx.peer.test\r\n502 no\r\n250 mx\r\n250 ok\r\n",
        ],
        REPLY_WORDS,
    ),
    "control": (
        targets_doors.check_control,
        [b'{"operation": "status", "arguments": {}}\n{"operation": 1}\n\n'],
        JSON_WORDS,
    ),
    "http-bodies": (
        targets_doors.check_body,
        [
            b'\x20{"to": ["a@b.example"], "subject": "x", "text": "y", "headers": {"X-A": "b"},'
            b' "attachments": [{"filename": "a", "content": "YQ=="}]}',
            b'\xff{"address": "a@b.example", "display_name": "A", "quota_octets": 5}',
            b'\x10{"name": "k", "scopes": ["inbox:read"], "inbox_id": "inb_1",'
            b' "expires_at": "2026-01-01T00:00:00Z"}',
            b'\x10{"name": "b.example", "organization_id": "org_1"}',
            b'\x10{"name": "b.example", "organization_id": "\\u0000"}',
        ],
        JSON_WORDS,
    ),
}


# Short inputs find almost all that long ones find; only stalls need these.
@pytest.mark.parametrize(
    "octets_limit", [2048, pytest.param(OCTETS_LIMIT, marks=pytest.mark.whole)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", TARGETS)
def test_invariant_holds_for_a_thousand_mutations(name: str, octets_limit: int):
    target, seeds, words = TARGETS[name]
    engine = Engine(target, seeds, words, number=1, octets_limit=octets_limit)
    assert engine.run(rounds=1000) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_invariant_holds_for_a_minute(name: str):
    target, seeds, words = TARGETS[name]
    seconds = float(os.environ.get("FUZZ_SECONDS", "60"))
    engine = Engine(target, seeds, words, number=int(os.environ.get("FUZZ_NUMBER", "2")))
    print(f"{name}: {engine.run(seconds=seconds)} inputs")


def test_engine_finds_a_planted_fault():
    def planted(data: bytes) -> None:
        assert b"--b--" not in data, "found"

    with pytest.raises(AssertionError, match="found"):
        Engine(planted, [b"x"], MAIL_WORDS, number=1).run(rounds=5000)
