"""What PostgreSQL's errors mean to a caller. A refused call was rolled back: it has changed nothing."""

from __future__ import annotations

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported

WRONG_ISOLATION = "HF001"
"""What our functions raise under any isolation level but READ COMMITTED."""

RETRIED = ("40001", "40P01")
"""Serialization failure, deadlock: the server asks for the same again."""

VANISHED = ("3F000", "42P01", "42883")
"""No such schema, table or function: somebody dropped them since we connected."""

ENDED = ("57P01", "57P02", "57P03", "57P05")
"""The server ends the connection: a shutdown, a crash, a start, idle for too long."""


def rights(schema: str, role: str) -> str:
    """What lets another role than the schema's owner use it."""
    return (
        f'the owner of the schema may run: GRANT USAGE ON SCHEMA "{schema}" TO "{role}"; '
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"; '
        f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{role}"'
    )


def may_not_create(schema: str, role: str, database: str, text: str) -> Misuse:
    return Misuse(
        f"holdfast makes its schema on first use, and PostgreSQL refused: {text}; someone who may can run, once: "
        f'CREATE SCHEMA "{schema}" AUTHORIZATION "{role}" (or: GRANT CREATE ON DATABASE "{database}" TO "{role}")'
    )


def newer(schema: str, version: object, ours: int) -> Unsupported:
    return Unsupported(
        f'the schema "{schema}" is of version {version}, made by a newer release of holdfast; this one knows {ours}: '
        "upgrade, or name another with ?schema="
    )


def refused(state: str, text: str, where: str, help_with_rights: str) -> HoldfastError:
    """What an error with this SQLSTATE means."""
    if state == "25006" or (state == "0A000" and "recovery" in text) or (state == "55000" and "recovery" in text):
        return read_only(where, text)
    if state == "42501":
        return Misuse(f"PostgreSQL at {where} forbids what holdfast needs: {text}; {help_with_rights}")
    if state[:2] == "28":
        return Misuse(f"PostgreSQL at {where} refused the user or password: {text}")
    if state == "3D000":
        return Misuse(f"PostgreSQL at {where} has no such database: {text}; name another at the end of the URL")
    if state in RETRIED:
        return Unavailable(f"PostgreSQL at {where} gave this up in favour of another transaction: {text}")
    if state in VANISHED:
        return Unavailable(f"holdfast's schema at {where} was taken away: {text}; it is made again at the next try")
    if state in ENDED:
        return OutcomeUnknown(f"PostgreSQL at {where} ended the connection: {text}")
    if state in ("57014", "55P03"):
        return Unavailable(
            f"PostgreSQL at {where} gave up: {text}; a statement_timeout or lock_timeout of this role is too short"
        )
    return Unavailable(f"PostgreSQL at {where} refused: {text} (SQLSTATE {state or 'unknown'})")


def read_only(where: str, text: str) -> Unavailable:
    return Unavailable(
        f"PostgreSQL at {where} takes no writes ({text}): connect to the primary (several hosts in the URL and "
        "target_session_attrs=read-write find it), or set default_transaction_read_only = off for this role"
    )


def not_connected(text: str, where: str, tried_s: float) -> HoldfastError:
    """Why no connection came about, by libpq's words: it gives no code. Nothing was sent, so nothing was done."""
    text = " ".join(text.split())
    if any(words in text for words in ("authentication failed", "no password supplied", "no pg_hba.conf entry")) or (
        "role" in text and "does not exist" in text
    ):
        return Misuse(
            f"PostgreSQL at {where} refused the user or password: {text}; give them in the URL "
            "(postgresql://user:password@host/database), PGPASSWORD or ~/.pgpass"
        )
    if "database" in text and "does not exist" in text:
        return Misuse(f"PostgreSQL at {where} has no such database: {text}; name another at the end of the URL")
    if text.startswith("invalid ") or "certificate file" in text:
        return Misuse(f"libpq does not take the settings of PostgreSQL at {where}: {text}")
    if "statement pooling" in text:
        return statement_pooling(where)
    return Unavailable(f"no connection to PostgreSQL at {where} (tried for {tried_s:.1f} s): {text}")


def statement_pooling(where: str) -> Unsupported:
    return Unsupported(
        f"the pooler at {where} is in statement mode, which allows no transactions: give holdfast a database entry "
        "with pool_mode=transaction or session, or the server itself"
    )
