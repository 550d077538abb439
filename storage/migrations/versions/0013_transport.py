"""Transport security: MTA-STS policies of others, TLS reports in both directions."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the six tables."""
    op.create_table(
        "tls_policies",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("fetched_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("refresh_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("domain", name=op.f("pk_tls_policies")),
        sqlite_with_rowid=False,
    )
    for name in ("expires_at", "refresh_at", "used_at"):
        op.create_index(f"ix_tls_policies_{name}", "tls_policies", [name], unique=False)
    _counted()
    _received()


def _counted() -> None:
    op.create_table(
        "tls_periods",
        sa.Column("begin_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("omitted", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("begin_at", "domain", name=op.f("pk_tls_periods")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tls_periods_due_at", "tls_periods", ["due_at"], unique=False)
    op.create_table(
        "tls_counts",
        sa.Column("begin_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("begin_at", "domain", "digest", name=op.f("pk_tls_counts")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tls_sent",
        sa.Column("begin_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("begin_at", "domain", "destination", name=op.f("pk_tls_sent")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tls_sent_at", "tls_sent", ["at"], unique=False)


def _received() -> None:
    op.create_table(
        "tls_reports",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("report_id", sa.Text(), nullable=False),
        sa.Column("contact", sa.Text(), nullable=False),
        sa.Column("begin_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("successes", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("omitted_rows", sa.Integer(), nullable=False),
        sa.Column("authenticated", sa.SmallInteger(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_tls_reports_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tls_reports")),
        sa.UniqueConstraint(
            "organization_id",
            "domain",
            "reporter",
            "report_id",
            name=op.f("uq_tls_reports_organization_id_domain_reporter_report_id"),
        ),
    )
    op.create_index("ix_tls_reports_received_at", "tls_reports", ["received_at"], unique=False)
    op.create_table(
        "tls_report_rows",
        sa.Column("report_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("policy_type", sa.Text(), nullable=False),
        sa.Column("policy_domain", sa.Text(), nullable=False),
        sa.Column("result_type", sa.Text(), nullable=False),
        sa.Column("sessions", sa.BigInteger(), nullable=False),
        sa.Column("sending_ip", sa.Text(), nullable=False),
        sa.Column("receiving_host", sa.Text(), nullable=False),
        sa.Column("receiving_ip", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["report_id"],
            ["tls_reports.id"],
            name=op.f("fk_tls_report_rows_report_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("report_id", "position", name=op.f("pk_tls_report_rows")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them, and what they held."""
    for name in ("tls_report_rows", "tls_reports", "tls_sent", "tls_counts", "tls_periods", "tls_policies"):
        op.drop_table(name)
