"""Who may do what over the API: roles, and the tokens that give them. Pure.

Of a token only its SHA-256 is kept. Tokens are made by hotpair with 256 random bits, so that neither salt nor a slow
hash is needed: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from hotpair.cluster.admission import NAME_RULE, is_name

TOKENS = 256  # in one file: each is compared at each request
LONGEST_TOKEN = 256  # characters of what a client presents
DIGEST_DIGITS = 64


class Role(IntEnum):
    """Each may do what those below it may."""

    MONITOR = 1  # sees everything that is shown
    CONTROL = 2  # runs modules: start, stop, swap, maintenance, verify, retry
    ADMIN = 3  # decides whose data is kept: prim, second

    @property
    def word(self) -> str:
        return self.name.lower()


WORDS = {role.word: role for role in Role}


@dataclass(frozen=True)
class Token:
    """`digest`: SHA-256 of the token, 64 hexadecimal digits."""

    name: str
    role: Role
    digest: str


class TokensUnusable(Exception):
    """The file of tokens cannot be used; the text says why and what to do, and no token."""


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def role_of(tokens: Iterable[Token], presented: str) -> Role | None:
    """All are compared, each in constant time: how long it takes says nothing about any of them."""
    digest = digest_of(presented[:LONGEST_TOKEN])
    found: Role | None = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token.role
    return found if len(presented) <= LONGEST_TOKEN else None


def parse_tokens(text: str, file: str) -> tuple[Token, ...]:
    """Tables [NAME] with role and sha256. Raises TokensUnusable."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokensUnusable(f"{file} is not TOML: {error}") from error
    if len(tables) > TOKENS:
        raise TokensUnusable(f"{file} has {len(tables)} tokens, at most {TOKENS} are read: remove some")
    return tuple(_token(name, table, file) for name, table in tables.items())


def _token(name: str, table: object, file: str) -> Token:
    if not is_name(name):
        raise TokensUnusable(f"{file}: a token cannot be called {name[:80]!r}: use {NAME_RULE}")
    if not isinstance(table, dict) or set(table) != {"role", "sha256"}:
        raise TokensUnusable(f"{file}: [{name}] needs the keys role and sha256, and no others")
    role, digest = table["role"], table["sha256"]
    if not isinstance(role, str) or role not in WORDS:
        raise TokensUnusable(f"{file}: [{name}] role: give one of {', '.join(WORDS)}")
    digits = digest.lower() if isinstance(digest, str) else ""
    if len(digits) != DIGEST_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise TokensUnusable(f"{file}: [{name}] sha256: give {DIGEST_DIGITS} hexadecimal digits")
    return Token(name, WORDS[role], digits)


def written(tokens: Iterable[Token]) -> str:
    """The file's text."""
    tables = (f'[{token.name}]\nrole = "{token.role.word}"\nsha256 = "{token.digest}"\n' for token in tokens)
    return "\n".join(tables)
