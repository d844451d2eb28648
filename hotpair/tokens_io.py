"""The file of the API's tokens below the home directory. Only its owner may read it."""

from __future__ import annotations

import os
import secrets
import stat

from hotpair.access import Role, Token, TokensUnusable, digest_of, parse_tokens, written
from hotpair.cluster.admission import NAME_RULE, is_name
from hotpair.cluster.record_io import OsFiles, replace_file

TOKENS_FILE = "tokens.toml"
LARGEST_FILE_BYTES = 1 << 18
TOKEN_BYTES = 32


def load(path: str) -> tuple[Token, ...]:
    """No tokens where there is no file. Raises TokensUnusable."""
    try:
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
            data = opened.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TokensUnusable(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise TokensUnusable(f"{path} can be read by others than its owner: chmod 600 {path}")
    if len(data) > LARGEST_FILE_BYTES:
        raise TokensUnusable(f"{path} has more than {LARGEST_FILE_BYTES} bytes")
    try:
        return parse_tokens(data.decode(), path)
    except UnicodeDecodeError as error:
        raise TokensUnusable(f"{path} is not UTF-8") from error


def add(path: str, name: str, role: Role) -> str:
    """A new token; it is nowhere but in what is returned. Raises TokensUnusable."""
    if not is_name(name):
        raise TokensUnusable(f"a token cannot be called {name[:80]!r}: use {NAME_RULE}")
    tokens = load(path)
    if any(token.name == name for token in tokens):
        raise TokensUnusable(f"there is a token {name} already: remove it first, or choose another name")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    _store(path, (*tokens, Token(name, role, digest_of(token))))
    return token


def remove(path: str, name: str) -> None:
    """Raises TokensUnusable."""
    tokens = load(path)
    rest = tuple(token for token in tokens if token.name != name)
    if len(rest) == len(tokens):
        known = ", ".join(token.name for token in tokens) or "none"
        raise TokensUnusable(f"there is no token {name!r}; there are: {known}")
    _store(path, rest)


def _store(path: str, tokens: tuple[Token, ...]) -> None:
    try:
        replace_file(path, written(tokens).encode(), OsFiles(), "tokens")
        os.chmod(path, 0o600)
    except OSError as error:
        raise TokensUnusable(f"{path} cannot be written: {error.strerror}") from error
