"""Whether qemu-ga in a guest answers. Source: QEMU's docs/interop/qemu-ga-ref, guest-sync."""

from __future__ import annotations

import json
import secrets
import socket
import time

ANSWER_LIMIT_S = 1.0
LONGEST_ANSWER_BYTES = 64 << 10


def answers(path: str, limit_s: float = ANSWER_LIMIT_S) -> bool:
    """Whether it answers on this socket within the limit. The answer must carry our own number: an older one that is
    still in the channel counts for nothing.
    """
    number = secrets.randbits(48)
    end = time.monotonic() + limit_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(limit_s)
        try:
            channel.connect(path)
            # The agent drops what an earlier, broken off question left in its parser when it sees the byte 0xff.
            channel.sendall(
                b"\xff" + json.dumps({"execute": "guest-sync", "arguments": {"id": number}}).encode() + b"\n"
            )
            received = b""
            while len(received) < LONGEST_ANSWER_BYTES and (left := end - time.monotonic()) > 0:
                channel.settimeout(left)
                part = channel.recv(4096)
                if not part:
                    return False
                received += part
                if any(_is_answer(line, number) for line in received.split(b"\n")):
                    return True
        except OSError:
            return False  # no socket, nobody behind it, or no answer: all the same to whoever asks
    return False


def _is_answer(line: bytes, number: int) -> bool:
    try:
        answer = json.loads(line.strip(b"\xff"))
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("return") == number
