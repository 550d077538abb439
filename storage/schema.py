"""The tables, once, for SQLite and PostgreSQL.

Owns names, types, keys and indexes. A database is only ever made by the
migrations; a test holds the migrations' head against this file. Ids are
prefixed text, times integer microseconds of UTC, structured values JSON text.
Every row names its organization, directly or through its mailbox or message.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives rowids (and AUTOINCREMENT) only to INTEGER; PostgreSQL needs 64 bits said.
Serial = BigInteger().with_variant(Integer, "sqlite")

organizations = Table(
    "organizations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False, index=True),
    Column("login", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

domains = Table(
    "domains",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False, index=True),
    Column("name", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

dkim_keys = Table(
    "dkim_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("domain", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("private_pem", LargeBinary, nullable=False),
    Column("public_record", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("domain", "selector"),
    # When the state began; since when each look at the DNS found the record, with its longest TTL in seconds.
    Column("changed_at", BigInteger, nullable=False, server_default="0"),
    Column("seen_at", BigInteger),
    Column("ttl_seconds", Integer, nullable=False, server_default="0"),
    Column("looked_at", BigInteger),
    Column("looked", Text, nullable=False, server_default=""),
    # The state that the operator was told of last, and when the daemon has to do with the key again.
    Column("told", Text, nullable=False, server_default=""),
    Column("due_at", BigInteger),
    Index("ix_dkim_keys_due_at", "due_at", sqlite_where=text("due_at IS NOT NULL"),
          postgresql_where=text("due_at IS NOT NULL")),
)  # fmt: skip

mailboxes = Table(
    "mailboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False, index=True),
    Column("address", Text, nullable=False, unique=True),
    Column("display_name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("quota_octets", BigInteger, nullable=False),
    Column("used_octets", BigInteger, nullable=False),
    Column("retention_class", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

routes = Table(
    "routes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False, index=True),
    Column("pattern", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("mailbox_id", Text, ForeignKey("mailboxes.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    # SCRAM-SHA-256 (RFC 7677): 'iterations$salt$StoredKey$ServerKey' in base64.
    Column("scram_verifier", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False, index=True),
    Column("mailbox_id", Text, ForeignKey("mailboxes.id")),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("key_hash", LargeBinary, nullable=False, unique=True),  # SHA-256
    Column("scopes", Text, nullable=False),  # separated by spaces
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
)

folders = Table(
    "folders",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("mailbox_id", Text, ForeignKey("mailboxes.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("special_use", Text, nullable=False),
    Column("uidvalidity", BigInteger, nullable=False),
    Column("uidnext", BigInteger, nullable=False),
    Column("highestmodseq", BigInteger, nullable=False),
    # UIDs at or above this were not yet shown as \Recent to any session (RFC 3501 2.3.2).
    Column("recent_uid", BigInteger, nullable=False),
    Column("subscribed", SmallInteger, nullable=False),
    # Tombstones up to this MODSEQ may have been pruned (RFC 7162 3.2.5.1).
    Column("forgotten_modseq", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("mailbox_id", "name"),
    sqlite_autoincrement=True,
)

# Subscribed names whose folder was deleted (RFC 9051 6.3.7: the name stays on the list).
lapsed_subscriptions = Table(
    "lapsed_subscriptions",
    metadata,
    Column("mailbox_id", Text, ForeignKey("mailboxes.id"), primary_key=True),
    Column("name", Text, primary_key=True),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("accepted_at", BigInteger, nullable=False),
    Column("octets", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the content
    Column("reverse_path", Text),
    Column("envelope", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("verdicts", Text, nullable=False),
    Column("trace", LargeBinary, nullable=False),
    Column("message_id_header", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("from_", Text, nullable=False),
    Column("to", Text, nullable=False),
    Column("sent_at", BigInteger, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("spooled", SmallInteger, nullable=False),  # 1 while spool/<id> holds it for the queue
    Index("ix_messages_organization_accepted", "organization_id", "accepted_at"),
    # Threading asks for the messages that a new one refers to.
    Index("ix_messages_organization_header", "organization_id", "message_id_header"),
    # Asked at every start.
    Index(
        "ix_messages_spooled", "id", sqlite_where=text("spooled = 1"), postgresql_where=text("spooled = 1")
    ),
)

renditions = Table(
    "renditions",
    metadata,
    Column("message_id", Text, ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("header_octets", Integer, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("bodystructure", LargeBinary, nullable=False),
    Column("parts", LargeBinary, nullable=False),
    Column("preview", Text, nullable=False),
    Column("attachments", Integer, nullable=False),
    Column("text", Text, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("folder_id", Serial, ForeignKey("folders.id"), primary_key=True, autoincrement=False),
    Column("uid", BigInteger, primary_key=True, autoincrement=False),
    Column("modseq", BigInteger, nullable=False),
    Column("message_id", Text, ForeignKey("messages.id"), nullable=False, index=True),
    Column("flags", Integer, nullable=False),
    Column("keywords", Text, nullable=False),  # separated by spaces, '' for none
    Column("internal_date", BigInteger, nullable=False),
    Column("octets", BigInteger, nullable=False),
    Column("prefix_octets", Integer, nullable=False),
    Column("name", Text, nullable=False),  # Maildir base name, without ':2,…'
    Column("subdirectory", Text, nullable=False),
    Column("mirrored", Text, nullable=False),
    # 1 while the Maildir name does not yet say what flags says.
    Column("mirror_due", SmallInteger, nullable=False),
    # The other name that the file may have until a renaming of ours is durable: 'cur/FS', 'new/'.
    Column("mirrored_other", Text),
    Index("ix_entries_folder_modseq", "folder_id", "modseq"),
    Index("ix_entries_mirror_due", "mirror_due", sqlite_where=text("mirror_due = 1"),
          postgresql_where=text("mirror_due = 1")),
    sqlite_with_rowid=False,
)  # fmt: skip

# UIDs that are gone, with the MODSEQ of their going: what QRESYNC's VANISHED needs (RFC 7162 3.2.10).
tombstones = Table(
    "tombstones",
    metadata,
    Column(
        "folder_id",
        Serial,
        ForeignKey("folders.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("modseq", BigInteger, primary_key=True, autoincrement=False),
    Column("uid", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

# Files and folder directories that a committed change has done away with and that still lie on disk.
removals = Table(
    "removals",
    metadata,
    Column("mailbox_id", Text, ForeignKey("mailboxes.id"), primary_key=True),
    # 0 where name is a folder's directory, else the folder whose entry's base name it is.
    Column("folder_id", Serial, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    sqlite_with_rowid=False,
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("message_id", Text, ForeignKey("messages.id"), nullable=False),
    Column("recipient", Text, nullable=False),
    Column("orcpt", Text),
    Column("notify", Text),  # separated by commas, NULL when not given
    Column("domain", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # NULL while held or active and once the state is final: the indexes hold only what can come due.
    Column("next_attempt_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("lease", Text),
    Column("lease_until", BigInteger),
    # When transmission of the current try began: durable before the first octet of DATA.
    Column("begun_at", BigInteger),
    Column("last_outcome", Text),
    Column("updated_at", BigInteger, nullable=False),
    # Read alone, without the table, to find the lanes (organization, domain, priority) that are due.
    Index("ix_deliveries_due", "next_attempt_at", "organization_id", "domain", "priority",
          sqlite_where=text("next_attempt_at IS NOT NULL"),
          postgresql_where=text("next_attempt_at IS NOT NULL")),
    # Takes the oldest of one lane, whatever waits in others.
    Index("ix_deliveries_lane", "organization_id", "domain", "priority", "next_attempt_at",
          sqlite_where=text("next_attempt_at IS NOT NULL"),
          postgresql_where=text("next_attempt_at IS NOT NULL")),
    Index("ix_deliveries_lease", "lease_until", sqlite_where=text("lease_until IS NOT NULL"),
          postgresql_where=text("lease_until IS NOT NULL")),
    Index("ix_deliveries_domain_state", "domain", "state"),
    # Finds what has been held too long.
    Index("ix_deliveries_held", "updated_at", sqlite_where=text("state = 'held'"),
          postgresql_where=text("state = 'held'")),
    # Whether a message has an open delivery left, at a cost that does not grow with its recipients.
    Index("ix_deliveries_message_state", "message_id", "state"),
)  # fmt: skip

events = Table(
    "events",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("message_id", Text, index=True),
    Column("mailbox_id", Text),
    Column("delivery_id", Text),
    Column("data", Text, nullable=False),
    Index("ix_events_organization_seq", "organization_id", "seq"),
    sqlite_autoincrement=True,
)

# How far each consumer of events has come; moved in the transaction of what it did.
cursors = Table(
    "cursors",
    metadata,
    Column("name", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
)

suppressions = Table(
    "suppressions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("address", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("scope", Text, nullable=False, server_default="organization"),  # 'sender', 'appliance'
    Column("sender", Text, nullable=False, server_default=""),  # an address, '' beyond the scope 'sender'
    Column("state", Text, nullable=False, server_default="active"),  # 'counting': failures alone so far
    Column("event_id", Text),
    Column("failures", Integer, nullable=False, server_default="0"),
    # From then on one delivery may try whether the address takes mail again: probe_id.
    Column("probation_at", BigInteger),
    Column("probe_id", Text),
    UniqueConstraint(
        "organization_id", "address", "sender", name="uq_suppressions_organization_id_address_sender"
    ),
    Index("ix_suppressions_address", "address"),
)

# How much of a kind happened for a key (an id, a domain) from start on, for as long as the kind's grain.
rate_counters = Table(
    "rate_counters",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    Index("ix_rate_counters_start", "start"),
    sqlite_with_rowid=False,
)

# Whom an organization has written to: a digest of the address, and when last.
written_to = Table(
    "written_to",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Index("ix_written_to_at", "at"),
    sqlite_with_rowid=False,
)

# Logins and organizations that may not send until an operator lifts it.
pauses = Table(
    "pauses",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

# Entries of the lists that policy rules keep in the database; the operator's, for all organizations.
list_entries = Table(
    "list_entries",
    metadata,
    Column("list", Text, primary_key=True),
    Column("entry", Text, primary_key=True),
    Column("added_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What was refused for its sender's reputation alone and is kept in Rejects; digest: what a retry has too.
rejects = Table(
    "rejects",
    metadata,
    Column("mailbox_id", Text, ForeignKey("mailboxes.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("octets", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_rejects_at", "at"),
    sqlite_with_rowid=False,
)

# What an inbox's owner did that tells of a correspondent; message_id: the message it was done to, or
# 'to ADDRESS' for mail of the owner's.
signs = Table(
    "signs",
    metadata,
    Column("mailbox_id", Text, ForeignKey("mailboxes.id", ondelete="CASCADE"), primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("correspondent", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_signs_correspondent", "mailbox_id", "correspondent", "at"),
    Index("ix_signs_at", "at"),
    sqlite_with_rowid=False,
)

# Acts that signs are yet to be made of, written in the act's transaction; mailbox_id: NULL for sent mail.
signs_due = Table(
    "signs_due",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("mailbox_id", Text, ForeignKey("mailboxes.id", ondelete="CASCADE")),
    Column("message_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# How often the condition of a rule's limit held lately for a value, kept as a digest: in the stretch that
# begins at start, and in the one before it. changed_at: the database's own order of changes.
limit_windows = Table(
    "limit_windows",
    metadata,
    Column("rule", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("period", BigInteger, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("before", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Index("ix_limit_windows_changed_at", "changed_at"),
    sqlite_with_rowid=False,
)

# Who came for the first time and is waited for, and (known = 1) who came back.
greylist = Table(
    "greylist",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("known", SmallInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Index("ix_greylist_until", "until"),
    Index("ix_greylist_changed_at", "changed_at"),
    sqlite_with_rowid=False,
)

# Calls of URLs that are still to be made; what is done or given up is an event and no row.
webhook_calls = Table(
    "webhook_calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("event_id", Text, nullable=False),  # what it tells of; one call an event and URL
    Column("message_id", Text),
    Column("url", Text, nullable=False),
    Column("origin", Text, nullable=False),  # scheme, host and port of the URL
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("content", SmallInteger, nullable=False),  # 1: the message itself goes with it
    Column("created_at", BigInteger, nullable=False),
    Column("next_attempt_at", BigInteger, nullable=False, index=True),
    Column("expires_at", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    UniqueConstraint("event_id", "url"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("message_id", Text),  # NULL while the first request is in progress
    Column("created_at", BigInteger, nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("organization_id", Text),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    # Erasable; the chain is over a keyed commitment to it, not over it.
    Column("detail", Text),
    Column("salt", LargeBinary),
    Column("commitment", LargeBinary, nullable=False),
    Column("chain", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

# One row a journal (an instance of the daemon): all records up to applied_sequence are applied.
journals = Table(
    "journals",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("applied_sequence", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

# Who may send as an address that is not its own: an inbox or a key, one of the two.
grants = Table(
    "grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("mailbox_id", Text, ForeignKey("mailboxes.id")),
    Column("api_key_id", Text, ForeignKey("api_keys.id")),
    Column("pattern", Text, nullable=False),  # 'local@domain' or '*@domain'
    Column("created_at", BigInteger, nullable=False),
    Index("ix_grants_organization_id", "organization_id", "pattern"),
)

# Small durable facts of the appliance: instance id, server secret's salt, dev set-up done.
settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
