"""The tables of DMARC's aggregate reports, in the metadata of storage.schema."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from storage.schema import metadata

# DMARC: what this server saw of domains that ask for aggregate reports, until the reports have gone. The
# operator's, for all organizations: it names senders' domains and addresses of servers, nobody's inbox.
dmarc_periods = Table(
    "dmarc_periods",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),  # where the policy lies
    Column("end_at", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),  # the last one seen
    Column("rows", Integer, nullable=False),
    Column("omitted", BigInteger, nullable=False),  # messages beyond the limit of rows
    Column("due_at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

dmarc_counts = Table(
    "dmarc_counts",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),  # of source_ip and facts
    Column("source_ip", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Whom a period's report went to, or why it did not: never twice to the same.
dmarc_sent = Table(
    "dmarc_sent",
    metadata,
    Column("begin_at", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("state", Text, nullable=False),  # 'sent', 'withheld', 'failed'
    Column("at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

# DMARC: aggregate reports that others sent about an organization's domains.
dmarc_reports = Table(
    "dmarc_reports",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("domain", Text, nullable=False),
    Column("policy_domain", Text, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("report_id", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("begin_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),
    Column("messages", BigInteger, nullable=False),
    Column("passed", BigInteger, nullable=False),
    Column("omitted_rows", Integer, nullable=False),
    Column("authenticated", SmallInteger, nullable=False),  # 1 where the mail that brought it passed DMARC
    Column("message_id", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False, index=True),
    UniqueConstraint("organization_id", "domain", "reporter", "report_id"),
)

dmarc_report_rows = Table(
    "dmarc_report_rows",
    metadata,
    Column("report_id", Text, ForeignKey("dmarc_reports.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("source_ip", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("disposition", Text, nullable=False),
    Column("dkim", Text, nullable=False),
    Column("spf", Text, nullable=False),
    Column("header_from", Text, nullable=False),
    Column("envelope_from", Text, nullable=False),
    Column("detail", Text, nullable=False),  # reasons and results as JSON
    sqlite_with_rowid=False,
)
