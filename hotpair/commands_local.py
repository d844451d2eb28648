"""The commands that need no running service: firewall, support, tokens, and what is taken over from safekit.

What one of them needs it imports itself: they are all listed whenever any command runs.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from hotpair.access import WORDS, TokensUnusable
from hotpair.actors.home import Home
from hotpair.actors.ray_profile import FIRST_PORT, Ports
from hotpair.api_values import PORT
from hotpair.command_options import CommandFailed, HomeOption, argument, home_of, option

if TYPE_CHECKING:
    from hotpair.cluster.configuration import Cluster
    from hotpair.firewall import Openings

APPLY_S = 30.0

ServerOption = Annotated[
    str | None, option("--server", metavar="NAME", help="This server's name; by default its host name")
]


def server_of(cluster: Cluster, given: str | None) -> str:
    """Raises CommandFailed."""
    names = [server.name for server in cluster.servers]
    name = given or socket.gethostname().partition(".")[0]
    if name in names:
        return name
    what = f"there is no server {name!r}" if given else f"this host is called {name!r}, which is no server's name"
    raise CommandFailed(f"{what}: --server {' or '.join(names)}")


# ---- firewall


def firewall(
    server: ServerOption = None,
    apply: Annotated[bool, option("--apply", help="Load them (nft -f), instead of printing them")] = False,
    ray_port: Annotated[int, option("--ray-port", least=1024, most=65000, help="As for hotpair run")] = FIRST_PORT,
    home: HomeOption = None,
) -> None:
    """Firewall rules for nftables, from the configuration: modules' ports for the peer, Ray's for this machine only."""
    from hotpair.firewall import rules

    text = rules(openings(home_of(home), server, ray_port))
    if not apply:
        print(text, end="")
        return
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=APPLY_S, check=False
        )
    except FileNotFoundError as error:
        raise CommandFailed("nft is not there: apt install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"nft has not ended within {APPLY_S:g} s") from error
    if done.returncode:
        raise CommandFailed(f"nft refuses the rules: {done.stderr.strip()}")


def openings(home: Home, server: str | None, ray_port: int) -> Openings:
    """Raises ConfigurationError, CommandFailed."""
    from hotpair.cluster.configuration_io import load_cluster, load_modules
    from hotpair.firewall import Openings

    cluster = load_cluster(home.configuration)
    peer = cluster.peer_of(server_of(cluster, server))
    modules = load_modules(home.configuration, cluster).accepted.values()
    ports = Ports(ray_port)
    return Openings(
        peer={*peer.networks.values(), *_numeric(peer.address)},
        modules={module.mirror_port for module in modules},
        ray=(ports.first, ports.last),
        api=PORT,
        api_open=cluster.security.tls is not None,
    )


def _numeric(address: str) -> set[str]:
    """A name is looked up now: a firewall that asks a name server at boot would not start without one."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CommandFailed(f"the peer's address {address} is not known: {error.strerror}") from error
    return {str(entry[4][0]).partition("%")[0] for entry in found}


# ---- support


def support(
    out: Annotated[str | None, option("--out", metavar="FILE", help="By default hotpair-support-DATE.tar.gz")] = None,
    home: HomeOption = None,
) -> None:
    """One archive for whoever helps: configuration, logs, records, states. No keys and no tokens are in it."""
    from hotpair.support_io import NotCollected, collect

    try:
        print(collect(home_of(home), out))
    except NotCollected as error:
        raise CommandFailed(str(error)) from error


# ---- tokens


def token_add(
    name: Annotated[str, argument(metavar="NAME", help="Whose it is")],
    role: Annotated[str, option("--role", choices=tuple(WORDS), help=", ".join(WORDS))] = "monitor",
    home: HomeOption = None,
) -> None:
    """Make a token and print it: it is not kept, only its SHA-256 is."""
    from hotpair.tokens_io import TOKENS_FILE, add

    try:
        print(add(home_of(home).below(TOKENS_FILE), name, WORDS[role]))
    except TokensUnusable as error:
        raise CommandFailed(str(error)) from error


def token_remove(name: Annotated[str, argument(metavar="NAME")], home: HomeOption = None) -> None:
    """The token is refused from now on."""
    from hotpair.tokens_io import TOKENS_FILE, remove

    try:
        remove(home_of(home).below(TOKENS_FILE), name)
    except TokensUnusable as error:
        raise CommandFailed(str(error)) from error


def token_list(home: HomeOption = None) -> None:
    """Names and roles."""
    from hotpair.tokens_io import TOKENS_FILE, load

    try:
        for token in load(home_of(home).below(TOKENS_FILE)):
            print(f"{token.name} {token.role.word}")
    except TokensUnusable as error:
        raise CommandFailed(str(error)) from error


# ---- from safekit


def import_safekit(
    userconfig: Annotated[str, argument(metavar="USERCONFIG.XML", help="The module's configuration")],
    cluster: Annotated[str | None, argument(metavar="CLUSTER.XML", help="If there is no cluster.toml yet")] = None,
    name: Annotated[str | None, option("--name", help="The module's; by default from the file's place")] = None,
    home: HomeOption = None,
) -> None:
    """Write modules/NAME.toml (and cluster.toml) from safekit's configuration, and say what has no equivalent.

    No file is ever written over.
    """
    from hotpair.safekit_import_io import NotImported, import_files

    try:
        for line in import_files(home_of(home), userconfig, cluster, name):
            print(line)
    except NotImported as error:
        raise CommandFailed(str(error)) from error


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "firewall": firewall,
    "support": support,
    "token add": token_add,
    "token remove": token_remove,
    "token list": token_list,
    "import-safekit": import_safekit,
}
