"""The file with the pairs' keys: TOML, `"pair" = "64 hexadecimal digits"`, readable by its owner only."""

from __future__ import annotations

import os
import stat
import tomllib

from hotpair.cluster.arbitration import is_name
from hotpair.cluster.witness_messages import KEY_BYTES

LARGEST_KEYS_BYTES = 1 << 20  # some eight thousand pairs


class BadKeys(Exception):
    """The file cannot be used; nothing of it is."""


def read_keys(path: str) -> dict[str, bytes]:
    """Each pair's key. Raises BadKeys."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadKeys(f"{path} is not a file")
            if status.st_mode & 0o077:
                raise BadKeys(f"{path} can be read by others than its owner: chmod 600 {path}")
            if status.st_uid not in (0, os.geteuid()):
                raise BadKeys(f"{path} belongs to another user: chown it to the user of the witness")
            data = file.read(LARGEST_KEYS_BYTES + 1)
    except OSError as error:
        raise BadKeys(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_KEYS_BYTES:
        raise BadKeys(f"{path} has more than {LARGEST_KEYS_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:
        raise BadKeys(f'{path} is not TOML, a pair on each line as in "pair" = "64 digits": {error}') from error
    keys: dict[str, bytes] = {}
    for pair, text in table.items():
        if not is_name(pair):
            raise BadKeys(f"{path}: {pair!r} cannot name a pair")
        keys[pair] = _key(path, pair, text)
    if not keys:
        raise BadKeys(f"{path} names no pair")
    if len(set(keys.values())) != len(keys):
        raise BadKeys(f"{path}: two pairs have the same key; each needs its own")
    return keys


def _key(path: str, pair: str, text: object) -> bytes:
    """The key itself is never part of a message: messages end up in logs."""
    try:
        key = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or not any(key):
        raise BadKeys(f"{path}: the key of {pair} is not {2 * KEY_BYTES} hexadecimal digits: openssl rand -hex 32")
    return key
