"""What people said about deliveries in doubt."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "doubt_verdicts",
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("corrected", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_doubt_verdicts")),
    )
    op.create_index(
        "ix_doubt_verdicts_open",
        "doubt_verdicts",
        ["at"],
        sqlite_where=sa.text("corrected = 0"),
        postgresql_where=sa.text("corrected = 0"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("doubt_verdicts")
