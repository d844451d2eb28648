"""Makes this server's supervisor in its Ray runtime, if there is none yet, and ends: a process of its own.

A process that has been connected to Ray ends with it, and the service must not.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import ray

from hotpair.actors.ray_actors import NAMESPACE, SUPERVISOR, SupervisorActor
from hotpair.actors.ray_profile import ACTOR_OPTIONS

UP_S = 120.0  # until the supervisor answers: it opens its modules then, however long that takes


def main(address: str) -> int:
    """What builds the supervisor comes pickled on standard input. Prints why it fails, in one line."""
    build = pickle.load(sys.stdin.buffer)  # from the service that has started this process
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    options = {**ACTOR_OPTIONS, "name": SUPERVISOR, "get_if_exists": True}
    actor: Any = ray.remote(SupervisorActor).options(**options).remote(build)
    try:
        ray.get(actor.ping.remote(), timeout=UP_S)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        print(f"{cause}", file=sys.stderr)
        return 1
    print("up", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
