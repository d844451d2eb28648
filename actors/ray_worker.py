"""What the raylet starts for each of its workers, in place of Ray's own script that prepares an environment for it.

Asks the fork server for the worker, and ends; when there is none, becomes the worker itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hotpair.actors.fork_client_io import NotForked, fork

FORK_SERVER = "HOTPAIR_FORK_SERVER"  # names its socket
FOR_RAYS_SCRIPT = ("--serialized-runtime-env-context=", "--language=")  # and not for the worker


def main(arguments: Sequence[str]) -> int:
    """The worker's script, and its arguments."""
    worker = [one for one in arguments if not one.startswith(FOR_RAYS_SCRIPT)]
    try:
        fork(os.environ[FORK_SERVER], worker, os.environ, (0, 1, 2))
    except (KeyError, NotForked) as error:
        print(f"this worker is not forked: {error}", file=sys.stderr)
        os.execv(sys.executable, [sys.executable, *worker])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
