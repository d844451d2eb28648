"""A program for tests: commits numbered transactions to an SQLite ledger and prints each number when it is committed.

python sqlite_ledger.py write FILE JOURNAL_MODE FIRST COUNT
python sqlite_ledger.py read FILE        prints the result of integrity_check, then every number
"""

import sqlite3
import sys

START = 1000  # each transaction moves money between two accounts: the sum stays


def connect(path: str) -> sqlite3.Connection:
    """A connection that waits for other writers, and begins transactions when told to."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def write(path: str, journal_mode: str, first: int, count: int) -> None:
    """Commit ``count`` transactions, and print each number after its commit."""
    connection = connect(path)
    (mode,) = connection.execute(f"PRAGMA journal_mode={journal_mode}").fetchone()
    assert mode == journal_mode, mode
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER, body BLOB)")
    connection.execute("CREATE TABLE IF NOT EXISTS account (name INTEGER PRIMARY KEY, balance INTEGER)")
    for name in range(10):
        connection.execute("INSERT OR IGNORE INTO account VALUES (?, ?)", (name, START))
    connection.execute("COMMIT")
    for number in range(first, first + count):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO ledger VALUES (?, randomblob(?))", (number, number * 37 % 9000))
        connection.execute("UPDATE account SET balance = balance - 1 WHERE name = ?", (number % 10,))
        connection.execute("UPDATE account SET balance = balance + 1 WHERE name = ?", (number // 10 % 10,))
        if number % 20 == 0:
            connection.execute("DELETE FROM ledger WHERE body IS NULL")
            connection.execute("UPDATE ledger SET body = randomblob(20000) WHERE number = ?", (number - 1,))
        connection.execute("COMMIT")
        print(number, flush=True)
    connection.close()


def read(path: str) -> None:
    """Print ``ok`` or what is wrong, then the numbers."""
    connection = connect(path)
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    (total,) = connection.execute("SELECT sum(balance) FROM account").fetchone()
    if total != 10 * START:
        problems.append(f"half a transaction: the accounts hold {total}")
    print("; ".join(problems))
    for (number,) in connection.execute("SELECT number FROM ledger ORDER BY number"):
        print(number)
    connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        read(sys.argv[2])
