"""The command `hotpair witness`: the arbiter on a third machine.

    hotpair witness --listen HOST:PORT --data DIR --keys FILE --tls-cert FILE --tls-key FILE [--tls-ca FILE]

It prints `ready` when it serves. SIGTERM ends it cleanly, SIGHUP reads the keys again. What cannot work is one line on
standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from typing import NoReturn

from hotpair.cluster.connection_io import ServerTls, parse_address
from hotpair.cluster.witness_keys_io import BadKeys
from hotpair.cluster.witness_server_io import CannotListen, WitnessServer
from hotpair.cluster.witness_store_io import SqliteStore, StoreDamaged, StoreUnusable


class BadUsage(Exception):
    """Arguments that cannot work; one line, exit code 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadUsage(message)


def parser() -> Parser:
    result = Parser(prog="hotpair witness", description="Grant each module's epoch to one server at a time.")
    result.add_argument("--listen", required=True, metavar="HOST:PORT")
    result.add_argument("--data", required=True, metavar="DIR", help="where the epochs are kept; on a local disk")
    result.add_argument("--keys", required=True, metavar="FILE", help='a line for each pair: "name" = "64 hex digits"')
    result.add_argument("--tls-cert", metavar="FILE")
    result.add_argument("--tls-key", metavar="FILE")
    result.add_argument("--tls-ca", metavar="FILE", help="demand certificates signed by this authority")
    result.add_argument("--insecure-no-tls", action="store_true", help="serve beyond this host without TLS")
    return result


def build(arguments: list[str]) -> tuple[WitnessServer, SqliteStore]:
    """Raises the errors that `main` reports."""
    options = parser().parse_args(arguments)
    address = parse_address(options.listen)
    tls = _tls(options, address.host)
    store = SqliteStore(options.data)
    try:
        return WitnessServer(address, tls, options.keys, store), store
    except (BadKeys, CannotListen, ValueError):
        store.close()
        raise


def _tls(options: argparse.Namespace, host: str) -> ServerTls | None:
    if options.tls_cert and options.tls_key:
        if options.insecure_no_tls:
            raise BadUsage("--tls-cert and --insecure-no-tls contradict each other: give one of them")
        return ServerTls(options.tls_cert, options.tls_key, options.tls_ca)
    if options.tls_cert or options.tls_key or options.tls_ca:
        raise BadUsage("--tls-cert and --tls-key go together (and --tls-ca with them): give both, or --insecure-no-tls")
    if not options.insecure_no_tls and not _is_loopback(host):
        raise BadUsage(f"{host} is not a loopback address: give --tls-cert and --tls-key, or say --insecure-no-tls")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(arguments: list[str]) -> int:
    """Run the witness; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        server, store = build(arguments)
    except (BadUsage, BadKeys, CannotListen, StoreDamaged, StoreUnusable, ValueError) as error:
        print(f"hotpair: {error}", file=sys.stderr)
        return 2
    if store.created:
        logging.warning(
            "%s is new: every module begins at epoch 0 (docs/arbitration.md says when that is right)", store.path
        )
    return server.run(lambda: print("ready", flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
