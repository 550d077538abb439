"""Who came for the first time, and who came back."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "greylist",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("known", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_greylist"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_greylist_until", "greylist", ["until"])
    op.create_index("ix_greylist_changed_at", "greylist", ["changed_at"])


def downgrade() -> None:
    """Drop it; every client is new again."""
    op.drop_table("greylist")
