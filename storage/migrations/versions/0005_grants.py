"""Grants: who may send as an address that is not its own."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of grants."""
    op.create_table(
        "grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("mailbox_id", sa.Text(), nullable=True),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_grants_organization_id"),
        sa.ForeignKeyConstraint(["mailbox_id"], ["mailboxes.id"], name="fk_grants_mailbox_id"),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_grants_api_key_id"),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
    )
    op.create_index("ix_grants_organization_id", "grants", ["organization_id", "pattern"])


def downgrade() -> None:
    """Drop the table of grants."""
    op.drop_table("grants")
