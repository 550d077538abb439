"""What is kept of refused mail, signs of whom an owner likes, and an index of what is held."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_IS_HELD = sa.text("state = 'held'")
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make three tables and an index."""
    op.create_table(
        "rejects",
        sa.Column("mailbox_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("octets", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"], ["mailboxes.id"], name=op.f("fk_rejects_mailbox_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("mailbox_id", "digest", name=op.f("pk_rejects")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_rejects_at", "rejects", ["at"])
    op.create_table(
        "signs",
        sa.Column("mailbox_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("correspondent", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"], ["mailboxes.id"], name=op.f("fk_signs_mailbox_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("mailbox_id", "message_id", "correspondent", name=op.f("pk_signs")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_signs_correspondent", "signs", ["mailbox_id", "correspondent", "at"])
    op.create_index("ix_signs_at", "signs", ["at"])
    op.create_table(
        "signs_due",
        sa.Column("seq", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("mailbox_id", sa.Text(), nullable=True),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"], ["mailboxes.id"], name=op.f("fk_signs_due_mailbox_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_signs_due")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_deliveries_held",
        "deliveries",
        ["updated_at"],
        sqlite_where=_IS_HELD,
        postgresql_where=_IS_HELD,
    )


def downgrade() -> None:
    """Drop them, and what they held."""
    op.drop_index("ix_deliveries_held", table_name="deliveries")
    for name in ("signs_due", "signs", "rejects"):
        op.drop_table(name)
