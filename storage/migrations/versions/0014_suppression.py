"""Suppressions with scope, evidence, runs of soft failures and probation."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_OLD = "uq_suppressions_organization_id_address"
_NEW = "uq_suppressions_organization_id_address_sender"


_COLUMNS = "id, organization_id, address, cause, evidence, created_at, expires_at"


def upgrade() -> None:
    """Add the columns; what is there holds for its organization, as before."""
    if op.get_context().dialect.name == "sqlite":
        # A table made anew under its own name: one that is renamed to it would be quoted from then on.
        op.execute("ALTER TABLE suppressions RENAME TO suppressions_before")
        op.create_table("suppressions", *_present(), *_further(), *_keys(_NEW, "sender"))
        op.execute(f"INSERT INTO suppressions ({_COLUMNS}) SELECT {_COLUMNS} FROM suppressions_before")  # noqa: S608 - ours
        op.drop_table("suppressions_before")
    else:
        for column in _further():
            op.add_column("suppressions", column)
        op.drop_constraint(op.f(_OLD), "suppressions", type_="unique")
        op.create_unique_constraint(op.f(_NEW), "suppressions", ["organization_id", "address", "sender"])
    op.create_index("ix_suppressions_address", "suppressions", ["address"])


def downgrade() -> None:
    """Drop them; of several rows of an address the one for the whole organization stays."""
    op.drop_index("ix_suppressions_address", "suppressions")
    op.execute("DELETE FROM suppressions WHERE sender <> '' OR state <> 'active'")
    if op.get_context().dialect.name == "sqlite":
        op.execute("ALTER TABLE suppressions RENAME TO suppressions_before")
        op.create_table("suppressions", *_present(), *_keys(_OLD))
        op.execute(f"INSERT INTO suppressions ({_COLUMNS}) SELECT {_COLUMNS} FROM suppressions_before")  # noqa: S608 - ours
        op.drop_table("suppressions_before")
        return
    op.drop_constraint(op.f(_NEW), "suppressions", type_="unique")
    op.create_unique_constraint(op.f(_OLD), "suppressions", ["organization_id", "address"])
    for column in _further():
        op.drop_column("suppressions", column.name)


def _present() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
    ]


def _further() -> list[sa.Column[Any]]:
    return [
        sa.Column("scope", sa.Text(), nullable=False, server_default="organization"),
        sa.Column("sender", sa.Text(), nullable=False, server_default=""),
        sa.Column("state", sa.Text(), nullable=False, server_default="active"),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("probation_at", sa.BigInteger(), nullable=True),
        sa.Column("probe_id", sa.Text(), nullable=True),
    ]


def _keys(unique: str, *more: str) -> list[sa.Constraint]:
    return [
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_suppressions_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suppressions")),
        sa.UniqueConstraint("organization_id", "address", *more, name=op.f(unique)),
    ]
