"""`ray start`, with our way to start a worker in place of Ray's (ray_worker.py)."""

from __future__ import annotations

import sys

import ray._private.ray_constants
from ray.scripts.scripts import main

from hotpair.actors import ray_worker

if __name__ == "__main__":
    # Ray joins this name to its own folder: an absolute path stands for itself. There is no option for it.
    ray._private.ray_constants.SETUP_WORKER_FILENAME = ray_worker.__file__
    sys.exit(main())  # type: ignore[no-untyped-call]  # Ray has no types for it
