"""The command ``hotpair``. Each command imports what it needs: the machine of a witness is no server."""

import sys


def main() -> int:
    """Run what the arguments ask for; the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["mirror"]:
        from hotpair.replication.__main__ import main as replication

        return replication(arguments[1:])
    if arguments[:1] == ["witness"]:
        from hotpair.cluster.witness_command import main as witness

        return witness(arguments[1:])
    if arguments[:1] == ["simulate"]:
        from hotpair.simulate_command import main as simulate

        return simulate(arguments[1:])
    if arguments[:1] == ["run"]:
        from hotpair.run_command import main as run

        return run(arguments[1:])
    if arguments[:1] == ["demo"]:
        from hotpair.demo_command import main as demo

        return demo(arguments[1:])
    from hotpair.commands import main as commands

    return commands(arguments)
