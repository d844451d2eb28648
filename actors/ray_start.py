"""`ray start`, with our way to start a worker in place of Ray's (ray_worker.py), and without its dashboard's process,
which an option only makes smaller: it would count who uses Ray, and each start would wait a second for it.
"""

from __future__ import annotations

import sys
from typing import Any

import ray._private.ray_constants
from ray._private.node import Node
from ray.scripts.scripts import main

from hotpair.actors import ray_worker


def no_dashboard(node: Node, **_: Any) -> None:
    """In place of Node.start_api_server."""
    node._webui_url = None


if __name__ == "__main__":
    # Ray joins this name to its own folder: an absolute path stands for itself. There is no option for it.
    ray._private.ray_constants.SETUP_WORKER_FILENAME = ray_worker.__file__
    Node.start_api_server = no_dashboard  # type: ignore[method-assign, assignment]
    sys.exit(main())  # type: ignore[no-untyped-call]  # Ray has no types for it
