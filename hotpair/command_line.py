"""The command ``hotpair``."""

import sys

from hotpair.replication.__main__ import main as replication


def main() -> int:
    """Run what the arguments ask for; the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["mirror"]:
        return replication(arguments[1:])
    if arguments == ["--version"]:
        from hotpair import __version__

        print(f"hotpair {__version__}")
        return 0
    print("usage: hotpair mirror source|target|protect|unprotect|restore --help, hotpair --version", file=sys.stderr)
    return 2
