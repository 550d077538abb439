"""What people did to the queue, and what it was before."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "queue_actions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_actions")),
    )
    op.create_index(op.f("ix_queue_actions_at"), "queue_actions", ["at"])
    op.create_table(
        "queue_action_items",
        sa.Column("action_id", sa.Text(), nullable=False),
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("after_state", sa.Text(), nullable=False),
        sa.Column("after_due", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["action_id"], ["queue_actions.id"], name=op.f("fk_queue_action_items_action_id")
        ),
        sa.PrimaryKeyConstraint("action_id", "delivery_id", name=op.f("pk_queue_action_items")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_queue_action_items_message", "queue_action_items", ["message_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("queue_action_items")
    op.drop_table("queue_actions")
