"""What policy counts and keeps: rate counters, whom was written to, pauses, list entries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the four tables."""
    op.create_table(
        "rate_counters",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", "start", name=op.f("pk_rate_counters")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_rate_counters_start", "rate_counters", ["start"], unique=False)
    op.create_table(
        "written_to",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "digest", name=op.f("pk_written_to")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_written_to_at", "written_to", ["at"], unique=False)
    op.create_table(
        "pauses",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_pauses_organization_id")
        ),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_pauses")),
    )
    op.create_table(
        "list_entries",
        sa.Column("list", sa.Text(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("list", "entry", name=op.f("pk_list_entries")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them, and what they held."""
    for name in ("list_entries", "pauses", "written_to", "rate_counters"):
        op.drop_table(name)
