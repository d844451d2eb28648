"""An invitation of the second server: what its token carries, and when it counts. Pure.

The token has a secret, which shows the second server to the first, and the SHA-256 of the first server's certificate,
which shows the first to the second: whoever stands in between has neither. Of the secret only its digest is kept, and
it has 256 random bits: there is nothing to guess, so that wrong ones need not be counted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass

SECRET_BYTES = 32
FINGERPRINT_BYTES = 32
PREFIX = "join-"  # no token begins with a dash, which would make it an option
VALID_MINUTES = 60
LONGEST_MINUTES = 24 * 60
LARGEST_FILE_BYTES = 4096


class NotInvited(Exception):
    """Nobody is let in; the text says what to do, and nothing about the secret."""


class NoToken(Exception):
    """What was typed is no token."""


@dataclass(frozen=True)
class Token:
    secret: bytes
    fingerprint: bytes


@dataclass(frozen=True)
class Invitation:
    """What the first server keeps. `digest`: of the secret, hexadecimal; `until`: seconds since 1970."""

    digest: str
    until: float


def token_text(token: Token) -> str:
    return PREFIX + base64.urlsafe_b64encode(token.secret + token.fingerprint).decode().rstrip("=")


def read_token(text: str) -> Token:
    """Raises NoToken."""
    digits = text.strip().removeprefix(PREFIX)
    try:
        data = base64.b64decode(digits + "=" * (-len(digits) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    if not text.strip().startswith(PREFIX) or len(data) != SECRET_BYTES + FINGERPRINT_BYTES:
        raise NoToken(f"this is no token: copy the whole of it, from {PREFIX} on, as hotpair invite has printed it")
    return Token(data[:SECRET_BYTES], data[SECRET_BYTES:])


def digest_of(secret: bytes) -> str:
    return hashlib.sha256(b"hotpair invitation 1" + secret).hexdigest()


def check(invitation: Invitation | None, secret: bytes, now: float, server: str) -> None:
    """Raises NotInvited: one text for all that is wrong, so that it says nothing about which."""
    known = invitation or Invitation("", 0.0)
    is_right = hmac.compare_digest(known.digest, digest_of(secret))
    if not is_right or now > known.until:
        raise NotInvited(f"the token is wrong, was used, or has expired: get another with hotpair invite on {server}")


def encode(invitation: Invitation) -> bytes:
    return json.dumps(asdict(invitation)).encode()


def decode(data: bytes) -> Invitation | None:
    """None for what is none: nobody is invited by it."""
    try:
        found = json.loads(data)
        return Invitation(str(found["digest"]), float(found["until"]))
    except (ValueError, KeyError, TypeError):
        return None
