"""The tables of transport security: policies of others, and reports in both directions, in one metadata."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, SmallInteger, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from storage.schema import metadata

# MTA-STS: policies of domains that mail goes to. The operator's, for all organizations.
tls_policies = Table(
    "tls_policies",
    metadata,
    Column("domain", Text, primary_key=True),
    Column("record_id", Text, nullable=False),  # of the TXT record that it was fetched for
    Column("policy", Text, nullable=False),  # in the form of its file
    Column("fetched_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("refresh_at", BigInteger, nullable=False, index=True),
    Column("used_at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

# TLS-RPT: days of which recipient domains are told how TLS went, until the reports have gone.
tls_periods = Table(
    "tls_periods",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),
    Column("end_at", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("omitted", BigInteger, nullable=False),  # sessions beyond the limit of rows
    Column("due_at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

tls_counts = Table(
    "tls_counts",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),  # of policy and fault
    Column("policy", Text, nullable=False),  # as JSON
    Column("fault", Text, nullable=False),  # as JSON, '' for sessions that went well
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Whom a day's report went to, or why it did not: never twice to the same.
tls_sent = Table(
    "tls_sent",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("state", Text, nullable=False),  # 'sent', 'failed'
    Column("at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

# TLS-RPT: reports that others sent about an organization's domains.
tls_reports = Table(
    "tls_reports",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("domain", Text, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("report_id", Text, nullable=False),
    Column("contact", Text, nullable=False),
    Column("begin_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False),
    Column("successes", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("omitted_rows", Integer, nullable=False),
    Column("authenticated", SmallInteger, nullable=False),  # 1 where the mail that brought it passed DMARC
    Column("message_id", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False, index=True),
    Unique("organization_id", "domain", "reporter", "report_id"),
)

tls_report_rows = Table(
    "tls_report_rows",
    metadata,
    Column("report_id", Text, ForeignKey("tls_reports.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("policy_type", Text, nullable=False),
    Column("policy_domain", Text, nullable=False),
    Column("result_type", Text, nullable=False),  # '' for sessions that went well
    Column("sessions", BigInteger, nullable=False),
    Column("sending_ip", Text, nullable=False),
    Column("receiving_host", Text, nullable=False),
    Column("receiving_ip", Text, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)
