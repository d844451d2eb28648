"""Every key of cluster.toml and of modules/NAME.toml. docs/configuration.md shows them; a test compares."""

from __future__ import annotations

from dataclasses import dataclass

from hotpair.cluster.arbitration import ARBITER_TIMEOUT_S, FENCE_TIMEOUT_S
from hotpair.cluster.configuration_keys import (
    REQUIRED,
    Derived,
    Key,
    choice,
    command,
    flag,
    host,
    host_and_port,
    ip_and_port,
    list_of,
    name,
    name_or_none,
    number,
    path,
    size,
    text,
    whole,
    word_or_server,
)
from hotpair.cluster.pulse import NETWORKS
from hotpair.cluster.split_brain import WORDS as SPLIT_BRAIN_WORDS

# As in replication/limits.py, which this package does not import; a test compares them.
PROBE_INTERVAL_S = 1.0
EXTENT_SIZE_SMALLEST = 64 << 10
EXTENT_SIZE_LARGEST = 1 << 30
SHORTEST_SILENCE_S = 1.2
SILENCE_TIMEOUT_S = 1.5
STALL_TIMEOUT_S = 10.0

MARGIN_S = 0.25  # for the scheduling of three processes on a loaded host
FENCE_AFTER_S = 2.5  # default of fence_after_s, with the other defaults below timeout_s
FENCE_ROOM_S = 10.0  # beyond the fencing command's time limit: to notice the loss before, to pass the answer on after
ANSWER_ROOM_S = 2.0  # beyond an arbiter's own time limit: to kill a command, and for the answer to reach the module
PULSES_PER_TIMEOUT = 4  # at least: a few lost pulses must not make a peer lost
CHECKERS_PER_MODULE = 16  # each is a process or a connection every few seconds, times 25 modules

_PORT = whole(1024, 65535)
_PATH = path()
_SERVER_NAME = "the name of one of the two servers"

CLUSTER = (
    Key("name", name(), REQUIRED, "The pair's name, also at the witness. It must be unique there and never change"),
)

SERVER = (
    Key("name", name(), REQUIRED, "The server's name. The order of the two decides the last tie: the first goes first"),
    Key(
        "address",
        host(),
        REQUIRED,
        "Where the peer reaches the server's mirror processes and its API",
    ),
)

SERVER_NETWORKS_MEANING = (
    f"The server's numeric address on each network that carries pulses: 1 to {NETWORKS} names, the same on both "
    "servers, at least one of them a network of its own if possible"
)

HEARTBEAT = (
    Key("pulse_s", number(0.05, 60), 0.5, "One pulse is sent so often over every network"),
    Key(
        "timeout_s",
        number(0.5, 3600),
        5.0,
        "Silence on all networks and on the mirror link for so long: the peer is lost",
    ),
    Key(
        "fence_after_s",
        number(0.1, 3600),
        Derived(f"{FENCE_AFTER_S:g}, for fence its timeout_s + {FENCE_ROOM_S:g}"),
        "A primary whose writes are frozen and whose mirror hears nothing for so long stops its VM, pulses or not",
    ),
    Key("vm_kill_s", number(0.05, 600), 0.5, "A VM that is being killed writes no more after so long, at most"),
)

ARBITRATION = (
    Key(
        "kind",
        choice("witness", "etcd", "fence", "ping", "none", "manual"),
        REQUIRED,
        "Who decides when the two servers do not hear each other",
    ),
)


def _limit(default: float) -> Key:
    return Key("timeout_s", number(0.1, 600), default, "One question may take so long")


_TLS_FILES = (
    Key("tls", flag(), True, "Whether the connection is encrypted and authenticated by TLS 1.3"),
    Key("tls_authority", _PATH, "tls/authority.pem", "Certificate of the authority that signed the other side's"),
    Key("tls_certificate", _PATH, "tls/server.pem", "This server's own certificate"),
    Key("tls_key", _PATH, "tls/server.key", "Its private key"),
)

# The table of the chosen kind; the kinds that are missing here have no options.
ARBITRATION_OPTIONS: dict[str, tuple[Key, ...]] = {
    "witness": (
        Key("address", host_and_port(), REQUIRED, "Where `hotpair witness` listens"),
        Key("key_file", _PATH, "witness.key", "The pair's key at the witness: 64 hexadecimal digits"),
        _limit(ARBITER_TIMEOUT_S),
        *_TLS_FILES,
    ),
    "etcd": (
        Key("endpoints", list_of(host_and_port(), 1, 9), REQUIRED, "Members of the etcd cluster, tried in turn"),
        Key("prefix", text('text that begins with "/"', "/.*"), "/hotpair", "Keys are made below it"),
        _limit(ARBITER_TIMEOUT_S),
        *_TLS_FILES,
    ),
    "fence": (
        Key("command", command(), REQUIRED, "Ends with 0 only if the peer is certainly off; HOTPAIR_PEER is its name"),
        _limit(FENCE_TIMEOUT_S),
    ),
    "ping": (
        Key("addresses", list_of(ip_and_port(), 1, 9), REQUIRED, "One must answer, for example the router"),
        _limit(ARBITER_TIMEOUT_S),
    ),
}

SECURITY = (
    Key("key_file", _PATH, "pair.key", "The pair's key, the same on both servers: 64 hexadecimal digits"),
    *_TLS_FILES,
)

MODULE = (
    Key("directory", _PATH, REQUIRED, "What is mirrored: the directory of the VM's disks"),
    Key(
        "mirror_port",
        _PORT,
        REQUIRED,
        "Port of the module's mirror stream (TCP) and of its pulses (UDP), another one for each module",
    ),
    Key(
        "boot",
        choice("on", "off", "as-before"),
        "as-before",
        "Whether the module is started with the server; as-before: if it was not stopped by the operator",
    ),
    Key("preferred", name_or_none(_SERVER_NAME), "", "Where the module runs when both servers are equally good"),
    Key(
        "failback",
        choice("manual", "automatic"),
        "manual",
        "automatic: swaps back to the preferred server once both copies are equal again",
    ),
    Key(
        "split_brain",
        word_or_server(*SPLIT_BRAIN_WORDS),
        "manual",
        "Whose changes are kept after both servers went on alone; the other's are saved to a file before",
    ),
    Key("data_on", name_or_none(_SERVER_NAME), "", "Which server had the data when the module was created"),
)

MIRROR = (
    Key(
        "durability",
        choice("memory", "disk"),
        "memory",
        "When a write is acknowledged: in both servers' memory, or on both disks. A flush always means both disks",
    ),
    Key(
        "cache",
        choice("direct", "page"),
        "direct",
        "direct for disks of virtual machines, page for applications that rely on the page cache",
    ),
    Key(
        "extent_size",
        size(EXTENT_SIZE_SMALLEST, EXTENT_SIZE_LARGEST, power_of_two=True),
        "4m",
        "What one mark of the dirty log covers",
    ),
    Key("hot_extents", whole(64, 1 << 22), 32768, "After a crash at most so many extents are copied again"),
    Key(
        "silence_timeout_s",
        number(SHORTEST_SILENCE_S, 600),
        SILENCE_TIMEOUT_S,
        "Nothing at all from the peer for so long, not even that its network acknowledges: the link is lost",
    ),
    Key(
        "stall_timeout_s",
        number(0.1, 600),
        STALL_TIMEOUT_S,
        "The peer is there, but its mirror answers nothing for so long, or gets no further: the link is lost",
    ),
)

VM = (
    Key(
        "driver",
        name('the name of an installed driver: "command", "libvirt", "qemu", or a partner\'s'),
        REQUIRED,
        "What runs the VM; whether it is installed is checked by the server that uses it",
    ),
    Key("normal_stop", choice("stop", "save", "off"), "stop", "How the VM is stopped for a swap or a stop"),
    Key("start_timeout_s", number(1, 86400), 120.0, "A start that takes longer has failed"),
    Key("stop_timeout_s", number(1, 86400), 300.0, "A normal stop that takes longer is followed by off"),
)

VM_OPTIONS_MEANING = "Whatever the driver asks for; the driver checks it"

LOOP = (
    Key(
        "max_loop",
        whole(1, 1000),
        3,
        "So many automatic actions within the interval are allowed; then the module stops",
    ),
    Key("loop_interval_s", number(0, 31536000), 86400.0, "The interval; 0 allows any number"),
)

ACTION_MEANING = "What is done when it is down"
START_MEANING = "So long after a start of the VM a down does not count unless it has been up since: guests boot"
START = number(0, 86400)
BOOT_S = 120.0  # most guests are up by then; one that is late is not restarted, and so never up
ACTIONS = choice("stop", "wait", "swap", "stopstart", "restart", "none")

CHECKER = (
    Key("period_s", number(1, 86400), 10.0, "One check so often"),
    Key("timeout_s", number(0.1, 3600), 5.0, "A check that takes longer says down; at most the period"),
    Key("confirm_s", number(0, 86400), 15.0, "The action follows after so long without an up"),
)


@dataclass(frozen=True)
class CheckerKind:
    """`action` and `start_s` by default. `before_start`: it can look at something before the module is started.

    `may_wait`: what it looks at can come up while the VM is off, so there is something to wait for.
    """

    action: str
    before_start: bool
    meaning: str
    options: tuple[Key, ...] = ()
    start_s: float = 0.0
    may_wait: bool = True


CHECKER_KINDS: dict[str, CheckerKind] = {
    "vm-state": CheckerKind("restart", False, "The hypervisor says that the VM runs", may_wait=False),
    "guest-heartbeat": CheckerKind(
        "restart", False, "The guest's integration services answer; a guest without is up", may_wait=False
    ),
    "tcp": CheckerKind(
        "restart",
        False,
        "A TCP port can be connected to",
        (Key("address", host_and_port(), REQUIRED, "Where the service in the guest listens"),),
        start_s=BOOT_S,
    ),
    "ping": CheckerKind(
        "wait",
        True,
        "An address answers to ICMP echo",
        (Key("address", host(), REQUIRED, "For example the router the guest needs"),),
    ),
    "process": CheckerKind(
        "stopstart",
        False,
        "A process runs on this server",
        (Key("process", text("a process name"), REQUIRED, "Name of the executable, or its path"),),
        start_s=BOOT_S,
    ),
    "interface": CheckerKind(
        "wait",
        True,
        "A network interface of this server is up",
        (Key("interface", text("an interface name"), REQUIRED, "For example the one below the virtual switch"),),
    ),
    "disk-space": CheckerKind(
        "none",
        True,
        "A file system has space left",
        (
            Key("path", _PATH, REQUIRED, "Any path on the file system"),
            Key("least", size(1 << 20, 1 << 60), "1g", "Less than so much is down"),
        ),
    ),
    "command": CheckerKind(
        "none",
        False,
        "A command ends with 0",
        (Key("command", command(), REQUIRED, "Gets the module's name in HOTPAIR_MODULE"),),
        start_s=BOOT_S,
    ),
    "module": CheckerKind(
        "wait",
        True,
        "Another module of the pair runs, on either server",
        (Key("module", name("the name of another module"), REQUIRED, "Its name"),),
    ),
}

CHECKER_KIND = Key("kind", choice(*CHECKER_KINDS), REQUIRED, "What is checked")


def checker_keys(kind: str) -> tuple[Key, ...]:
    """All keys of a checker of this kind."""
    described = CHECKER_KINDS[kind]
    action = Key("action", ACTIONS, described.action, ACTION_MEANING)
    start = Key("start_s", START, described.start_s, START_MEANING)
    return (CHECKER_KIND, *CHECKER, start, action, *described.options)
