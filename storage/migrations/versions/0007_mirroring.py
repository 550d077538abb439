"""Second names of files until a renaming is durable; when messages went, and how far that is forgotten."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the three columns."""
    op.add_column("entries", sa.Column("mirrored_other", sa.Text(), nullable=True))
    op.add_column("tombstones", sa.Column("at", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column(
        "folders", sa.Column("forgotten_modseq", sa.BigInteger(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    """Drop them."""
    for table, column in (
        ("folders", "forgotten_modseq"),
        ("tombstones", "at"),
        ("entries", "mirrored_other"),
    ):
        with op.batch_alter_table(table) as batch:
            batch.drop_column(column)
