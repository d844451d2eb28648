"""The commands that make a pair, and change what it has: init, invite, join, and module add, edit, remove.

What one of them needs it imports itself: they are all listed whenever any command runs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from hotpair.actors.home import Home
from hotpair.client import Client
from hotpair.command_options import CommandFailed, HomeOption, ModuleArgument, argument, home_of, option
from hotpair.invitations import LONGEST_MINUTES, VALID_MINUTES, NoToken, read_token
from hotpair.pair_init import MEANINGS, NotUnderstood, Options

FromOption = Annotated[str | None, option("--from", metavar="FILE.toml", help="The module's file")]
PortOption = Annotated[
    int | None, option("--port", least=1, most=65535, help="Of its mirror and pulses; a free one if left out")
]
MinutesOption = Annotated[float, option("--minutes", least=1, most=LONGEST_MINUTES, help="How long the token is valid")]
OverwriteOption = Annotated[
    bool, option("--overwrite", help="What is in the directory on the server without the data is given up")
]


# ---- a new pair


def init(
    name: Annotated[str, option("--name", help="The pair's name: it never changes")],
    server: Annotated[str, option("--server", metavar="NAME=ADDRESS", help="This server")],
    peer: Annotated[str, option("--peer", metavar="NAME=ADDRESS", help="The other one")],
    arbitration: Annotated[
        str, option("--arbitration", metavar="KIND", help="; ".join(f"{k}: {m}" for k, m in MEANINGS.items()))
    ] = "",
    network: Annotated[
        list[str] | None,
        option("--network", metavar="NAME=ADDRESS,PEERS-ADDRESS", help="For pulses; one option for each network"),
    ] = None,
    witness: Annotated[str, option("--witness", metavar="HOST:PORT", help="Where hotpair witness listens")] = "",
    witness_key: Annotated[
        str | None, option("--witness-key", metavar="FILE", help="The pair's key there; made if left out")
    ] = None,
    witness_authority: Annotated[
        str | None,
        option("--witness-authority", metavar="FILE", help="Who signed its certificate; else one is made for it"),
    ] = None,
    witness_tls: Annotated[bool, option("--witness-tls", help="TLS to the witness")] = True,
    etcd: Annotated[list[str] | None, option("--etcd", metavar="HOST:PORT", help="A member; repeat")] = None,
    fence: Annotated[str, option("--fence", metavar="COMMAND", help="Ends with 0 if the peer is off")] = "",
    ping: Annotated[list[str] | None, option("--ping", metavar="ADDRESS", help="Numeric; repeat")] = None,
    minutes: MinutesOption = VALID_MINUTES,
    home: HomeOption = None,
) -> None:
    """Make the first server's home: cluster.toml, the pair's key, certificates. Then `hotpair join` on the other."""
    from hotpair.home_files_io import NotMade
    from hotpair.invitations_io import CannotInvite
    from hotpair.invitations_io import invite as invite_second
    from hotpair.pair_home_io import WitnessFiles
    from hotpair.pair_home_io import init as init_pair

    options = Options(
        pair=name,
        here=server,
        peer=peer,
        networks=network or (),
        arbitration=arbitration,
        witness=witness,
        witness_authority=witness_authority is not None,
        witness_tls=witness_tls,
        etcd=etcd or (),
        fence=fence,
        ping=ping or (),
    )
    where = home_of(home)
    try:
        pair, to_do = init_pair(where, options, WitnessFiles(witness_key, witness_authority))
    except (NotUnderstood, NotMade) as error:
        raise CommandFailed(str(error)) from error
    try:
        token = invite_second(where, minutes)
    except CannotInvite as error:
        raise CommandFailed(f"the home is made, and only the token is missing (hotpair invite): {error}") from error
    print(f"{pair.here.name} has the home of the pair {pair.name}: {where.configuration}")
    print(f"When {pair.here.name} and {pair.peer.name} do not hear each other: {MEANINGS[arbitration]}.")
    _to_do([
        *to_do,
        f"start the service on {pair.here.name}: {_run(home, pair.here.name)}",
        f"within {minutes:g} minutes, on {pair.peer.name}: {_join(pair.here.address, token, pair.peer.name)}",
        f"start the service on {pair.peer.name}: {_run(home, pair.peer.name)}",
        "add a module: hotpair module add NAME --directory DIR --data-on SERVER --driver DRIVER",
    ])  # fmt: skip


def invite(minutes: MinutesOption = VALID_MINUTES, home: HomeOption = None) -> None:
    """Print a token for `hotpair join` on the other server: it counts once, and any older one does not any more."""
    from hotpair.invitations_io import CannotInvite
    from hotpair.invitations_io import invite as invite_second

    try:
        print(invite_second(home_of(home), minutes))
    except CannotInvite as error:
        raise CommandFailed(str(error)) from error


def join(
    address: Annotated[str, argument(metavar="ADDRESS[:PORT]", help="Of the first server, where it runs")],
    token: Annotated[str, argument(metavar="TOKEN", help="As hotpair init or invite has printed it")],
    server: Annotated[
        str | None, option("--server", metavar="NAME", help="This server's name; by default its host name")
    ] = None,
    overwrite: OverwriteOption = False,
    home: HomeOption = None,
) -> None:
    """Make the second server's home, from the first one's running service. Or one that replaces a lost server."""
    from hotpair.home_files_io import NotMade
    from hotpair.join_io import join as join_pair

    name = server or socket.gethostname().partition(".")[0]
    where = home_of(home)
    try:
        to_do = join_pair(where, address, read_token(token), name, overwrite=overwrite)
    except (NoToken, NotMade) as error:
        raise CommandFailed(str(error)) from error
    print(f"{name} has the home of the pair: {where.configuration}")
    _to_do([f"start the service: {_run(home, name)}", *to_do])


def _to_do(lines: Sequence[str]) -> None:
    print("Next:")
    for number, line in enumerate(lines, 1):
        print(f"  {number}. {line}")


def _run(home: str | None, server: str) -> str:
    if home is None:
        return "systemctl enable --now hotpair"
    return f"hotpair run --home {home} --server {server}"


def _join(address: str, token: str, server: str) -> str:
    return f"hotpair join {f'[{address}]' if ':' in address else address} {token} --server {server}"


# ---- modules


def module_add(
    module: ModuleArgument,
    directory: Annotated[str | None, option("--directory", metavar="DIR", help="What is mirrored")] = None,
    data_on: Annotated[str | None, option("--data-on", metavar="SERVER", help="Which server has the data now")] = None,
    driver: Annotated[str | None, option("--driver", help="What runs it: command, libvirt, qemu, ...")] = None,
    driver_option: Annotated[
        list[str] | None, option("--option", metavar="KEY=VALUE", help="Of the driver; repeat")
    ] = None,
    port: PortOption = None,
    given: FromOption = None,
    overwrite: OverwriteOption = False,
    start: Annotated[bool, option("--start", help="And start it on both servers")] = False,
    home: HomeOption = None,
) -> None:
    """Add a module to both servers. They check first, and nothing is written on either if one cannot have it."""
    settings: dict[str, Any] = {
        key: value
        for key, value in (("directory", directory), ("data_on", data_on), ("mirror_port", port), ("vm.driver", driver))
        if value is not None
    }
    settings |= {f"vm.options.{key}": value for key, value in _settings(driver_option or (), "--option").items()}
    text, table = _file(given)
    if given is None and (directory is None or data_on is None or driver is None):
        raise CommandFailed("give --directory, --data-on and --driver, or a file: --from FILE.toml")
    with _client(home) as client:
        if settings:
            notes = client.add_module(module, configuration=_set(table, settings), overwrite=overwrite, start=start)
        else:
            notes = client.add_module(module, toml=text, overwrite=overwrite, start=start)
    _notes(notes)


def module_edit(
    module: ModuleArgument,
    given: FromOption = None,
    settings: Annotated[
        list[str] | None, option("--set", metavar="KEY=VALUE", help='As "mirror.durability=disk"; repeat')
    ] = None,
    home: HomeOption = None,
) -> None:
    """Change a module that is stopped, on both servers. --set writes the file anew, without its comments."""
    if (given is None) == (not settings):
        raise CommandFailed("give --from FILE.toml, or --set KEY=VALUE, one of them")
    changed = _settings(settings or (), "--set")
    text, _ = _file(given)
    with _client(home) as client:
        _notes(client.edit_module(module, toml=text) if changed == {} else client.edit_module(module, settings=changed))


def module_remove(module: ModuleArgument, home: HomeOption = None) -> None:
    """Remove a module that is stopped, from both servers. The data in its directories stays."""
    with _client(home) as client:
        _notes(client.remove_module(module))


def _settings(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Values as in TOML; what is none is text."""
    import tomllib

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise CommandFailed(f"{option} {text}: give KEY=VALUE")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            found[key.strip()] = value
    return found


def _set(table: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from hotpair.pair_change import with_settings

    try:
        return with_settings(table, settings)
    except KeyError as error:
        raise CommandFailed(f"{error.args[0]} is a value and no table: it has no keys to set") from error


def _file(path: str | None) -> tuple[str, dict[str, Any]]:
    """Its text, and what it says. Raises CommandFailed with line and column."""
    if path is None:
        return "", {}
    import tomllib

    from hotpair.pair_change import LONGEST_MODULE_TEXT

    try:
        with open(path, encoding="utf-8") as opened:
            text = opened.read(LONGEST_MODULE_TEXT + 1)
        return text, tomllib.loads(text)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} is not TOML: {error}") from error


def _client(home: str | None) -> Client:
    found: Home = home_of(home)
    return Client.here(found)


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(note)


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "init": init,
    "invite": invite,
    "join": join,
    "module add": module_add,
    "module edit": module_edit,
    "module remove": module_remove,
}
