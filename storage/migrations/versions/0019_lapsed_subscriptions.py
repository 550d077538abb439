"""Subscribed names of folders that are no more."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "lapsed_subscriptions",
        sa.Column("mailbox_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"], ["mailboxes.id"], name=op.f("fk_lapsed_subscriptions_mailbox_id")
        ),
        sa.PrimaryKeyConstraint("mailbox_id", "name", name=op.f("pk_lapsed_subscriptions")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("lapsed_subscriptions")
