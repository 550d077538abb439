"""How far each DKIM key has come: what the DNS said of it, and what is due."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; keys that sign are looked at from now on."""
    for name in ("changed_at", "seen_at", "looked_at", "due_at"):
        is_time_of_state = name == "changed_at"
        op.add_column(
            "dkim_keys",
            sa.Column(
                name,
                sa.BigInteger(),
                nullable=not is_time_of_state,
                server_default="0" if is_time_of_state else None,
            ),
        )
    op.add_column("dkim_keys", sa.Column("ttl_seconds", sa.Integer(), nullable=False, server_default="0"))
    for name in ("looked", "told"):
        op.add_column("dkim_keys", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE dkim_keys SET changed_at = created_at, told = state")
    op.execute("UPDATE dkim_keys SET due_at = 0 WHERE state = 'active'")
    op.create_index(
        "ix_dkim_keys_due_at",
        "dkim_keys",
        ["due_at"],
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_dkim_keys_due_at", "dkim_keys")
    with op.batch_alter_table("dkim_keys") as batch:
        for name in ("changed_at", "seen_at", "ttl_seconds", "looked_at", "looked", "told", "due_at"):
            batch.drop_column(name)
