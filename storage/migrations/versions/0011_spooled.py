"""Which messages the queue holds a copy of, without a look at all that there are."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index(
        "ix_messages_spooled",
        "messages",
        ["id"],
        sqlite_where=sa.text("spooled = 1"),
        postgresql_where=sa.text("spooled = 1"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_messages_spooled", "messages")
