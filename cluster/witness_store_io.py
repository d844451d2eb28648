"""The witness's table in SQLite.

A change is durable before `replace` returns: rollback journal, and synchronous=EXTRA, which also flushes the directory
after the journal is removed. With FULL alone a power cut right after a commit can bring the journal back, and with it
the old epoch (https://www.sqlite.org/pragma.html#pragma_synchronous).

Each standing is kept twice, as the current row and as the newest entry of the history; a database where they differ has
been damaged or changed by hand, and is refused. A missing database is made anew, which says so: docs/arbitration.md.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time

from hotpair.cluster.arbitration import Claim, Standing, is_name
from hotpair.cluster.witness import HISTORY_PER_MODULE

APPLICATION = 0x48505731  # "HPW1"
SCHEMA = 1
BUSY_S = 1.0  # somebody looks with another program; nobody else writes

_TABLES = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
CREATE TABLE standing (
    pair TEXT NOT NULL, module TEXT NOT NULL, epoch INTEGER NOT NULL CHECK (epoch > 0), holder TEXT NOT NULL,
    PRIMARY KEY (pair, module)) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    pair TEXT NOT NULL, module TEXT NOT NULL, epoch INTEGER NOT NULL, holder TEXT NOT NULL,
    purpose TEXT NOT NULL, named INTEGER NOT NULL, request_id BLOB NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (pair, module, epoch)) STRICT, WITHOUT ROWID;
"""

_NEWEST = "SELECT pair, module, max(epoch), holder FROM history GROUP BY pair, module"
_CURRENT = "SELECT pair, module, epoch, holder FROM standing"
_UNEQUAL = (
    f"SELECT (SELECT count(*) FROM ({_NEWEST} EXCEPT {_CURRENT}))"
    f" + (SELECT count(*) FROM ({_CURRENT} EXCEPT {_NEWEST}))"
)


class StoreDamaged(Exception):
    """The database is not as it was written. It is never repaired or replaced silently: epochs would go backwards."""


class StoreUnusable(Exception):
    """The directory or the database cannot be used: rights, another witness, a disk that is full."""


class StoreFailed(Exception):
    """A change could not be made durable. It may be the old or the new standing: grant nothing, and start again."""


class StoreBusy(Exception):
    """Nothing was changed, and nothing is broken: the disk is full, or another program holds the database."""


class SqliteStore:
    """The table below one directory, for one process. Not safe for use from several threads at once."""

    def __init__(self, directory: str) -> None:
        """Open or create. Raises StoreDamaged, StoreUnusable."""
        self.path = os.path.join(directory, "witness.db")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(f"{directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.created = not os.path.lexists(self.path)
            if self.created:
                _create(directory, self.path)
            self._database = self._open()
        except BlockingIOError:
            os.close(self._lock)
            raise StoreUnusable(f"{directory} is in use by another witness") from None
        except OSError as error:
            os.close(self._lock)
            raise StoreUnusable(f"{self.path} cannot be used: {error.strerror}") from error
        except (StoreDamaged, StoreUnusable):
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            f"file:{_escaped(self.path)}?mode=rw",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if database.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
                raise StoreDamaged(f"{self.path} is damaged: it does not begin like a witness's database. {_ADVICE}")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA:
                raise StoreUnusable(f"{self.path} has format {version}, this program uses {SCHEMA}: upgrade it")
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("PRAGMA synchronous = EXTRA")
            found = [text for (text,) in database.execute("PRAGMA integrity_check(3)")]
            if found != ["ok"]:
                raise StoreDamaged(f"{self.path} is damaged: {'; '.join(' '.join(found).split())[:200]}. {_ADVICE}")
            _check_rows(database, self.path)
        except (StoreDamaged, StoreUnusable):
            database.close()
            raise
        except sqlite3.DatabaseError as error:
            database.close()
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname in _NOT_DAMAGE:
                raise StoreUnusable(f"{self.path} cannot be used: {error}") from error
            raise StoreDamaged(f"{self.path} is damaged: {error}. {_ADVICE}") from error
        return database

    def standing(self, pair: str, module: str) -> Standing | None:
        """Raises StoreFailed, StoreBusy."""
        try:
            row = self._database.execute(
                "SELECT epoch, holder FROM standing WHERE pair = ? AND module = ?", (pair, module)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failure("read", error) from error
        return None if row is None else Standing(*row)

    def modules(self, pair: str) -> int:
        """Raises StoreFailed, StoreBusy."""
        try:
            (count,) = self._database.execute("SELECT count(*) FROM standing WHERE pair = ?", (pair,)).fetchone()
        except sqlite3.Error as error:
            raise self._failure("read", error) from error
        return int(count)

    def replace(self, claim: Claim, before: Standing | None, after: Standing) -> None:
        """Move on, with an entry in the history. Durable on return. Raises StoreFailed, StoreBusy."""
        assert after.epoch > (before.epoch if before else 0), "epochs never go backwards"
        key = (claim.pair, claim.module)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # for the operator's eyes only
        entry = (*key, after.epoch, after.holder, claim.purpose.value, claim.epoch, claim.request_id, at)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute(
                "INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?)", (*key, after.epoch, after.holder)
            )
            self._database.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?)", entry)
            self._database.execute(
                "DELETE FROM history WHERE pair = ? AND module = ? AND epoch NOT IN (SELECT epoch FROM history "
                "WHERE pair = ? AND module = ? ORDER BY epoch DESC LIMIT ?)",
                (*key, *key, HISTORY_PER_MODULE),
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failure("written", error) from error

    def _failure(self, what: str, error: sqlite3.Error) -> StoreFailed | StoreBusy:
        """The error to raise; after StoreBusy the table is as it was."""
        text = f"{self.path} cannot be {what}: {error}"
        if error.sqlite_errorname not in _PASSING:
            return StoreFailed(text)
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as second:
            return StoreFailed(f"{text}, and taking it back failed: {second}")
        return StoreBusy(text)

    def history(self, pair: str, module: str) -> list[tuple[int, str, str, str]]:
        """Epoch, holder, purpose and time of each change that is kept, newest first."""
        return self._database.execute(
            "SELECT epoch, holder, purpose, at FROM history WHERE pair = ? AND module = ? ORDER BY epoch DESC",
            (pair, module),
        ).fetchall()

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)


_ADVICE = (
    "Stop the witness, keep the file, and read 'When the witness has lost its data' in docs/arbitration.md before you "
    "remove it"
)
_PASSING = ("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED")
# Errors of opening a sound database.
_NOT_DAMAGE = (*_PASSING, "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY", "SQLITE_PERM")


def _check_rows(database: sqlite3.Connection, path: str) -> None:
    """What SQLite itself cannot know: the two places agree, and every name could have been claimed."""
    (unequal,) = database.execute(_UNEQUAL).fetchone()
    names = [name for row in database.execute("SELECT pair, module, holder FROM standing") for name in row]
    if unequal or not all(is_name(name) for name in names):
        raise StoreDamaged(f"{path} is damaged: its standings and its history do not agree. {_ADVICE}")


def _create(directory: str, path: str) -> None:
    """A complete empty database, or none: named when it is durable. Raises OSError, StoreDamaged, StoreUnusable."""
    if os.path.lexists(path + "-journal"):  # SQLite would play it back into the new one
        raise StoreDamaged(f"{path} is missing, but its journal is there. {_ADVICE}")
    temporary = path + ".new"
    for left in (temporary, temporary + "-journal"):
        if os.path.lexists(left):
            os.unlink(left)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        database = sqlite3.connect(temporary, isolation_level=None)
        try:
            database.executescript(_TABLES)
        except sqlite3.Error as error:
            raise StoreUnusable(f"{path} cannot be created: {error}") from error
        finally:
            database.close()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    for each in (directory, os.path.dirname(os.path.realpath(directory))):
        opened = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _escaped(path: str) -> str:
    """A path inside a SQLite URI."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
