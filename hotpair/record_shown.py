"""The durable record, as people and programs are shown it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from hotpair.cluster.record import Record


def readable(record: Record | None) -> dict[str, Any] | None:
    """Its ids as hexadecimal digits."""
    if record is None:
        return None
    return dict(json.loads(json.dumps(asdict(record), default=lambda value: value.hex())))
