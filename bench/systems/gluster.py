"""A GlusterFS replica-2 volume: two servers in two network namespaces, mounted by the FUSE client on the first."""

import os
import shutil
from pathlib import Path

from bench.mounts import is_mounted, unmount
from bench.process import BenchError, Child, command, wait_until
from bench.systems.base import DATA, Abilities

VOLUME = "vm"
STATE = Path("/var/lib/glusterd")
LOGS = Path("/var/log/glusterfs")
ADDRESSES = ("10.213.77.1", "10.213.77.2")  # exist only inside the two namespaces made here
SPACES = ("gluster-1", "gluster-2")

# Each server sees its own state, logs and run directory at the places GlusterFS has compiled in.
_SERVER = """
mount -t tmpfs tmpfs /run && mkdir -p /run/gluster &&
mount --bind "$1" /var/lib/glusterd && mount --bind "$2" /var/log/glusterfs && exec glusterd --no-daemon
"""


class Gluster:
    name = "gluster"
    abilities = Abilities(files=frozenset({DATA}))

    def __init__(self) -> None:
        self._servers: list[Child] = []
        self._client: Child | None = None

    def start(self, directory: Path) -> None:
        if not shutil.which("glusterd"):
            raise BenchError("glusterd is not installed (Debian: glusterfs-server, glusterfs-client)")
        self._mount = directory / "mount"
        self._mount.mkdir()
        self._bricks = [directory / "first" / "brick", directory / "second" / "brick"]
        _connect_namespaces()
        for space, brick in zip(SPACES, self._bricks, strict=True):
            self._start_server(space, brick)
        self._make_volume()
        client: list[str | Path] = [
            *("nsenter", f"--net=/run/netns/{SPACES[0]}", "glusterfs", "--no-daemon"),
            *(f"--volfile-server={ADDRESSES[0]}", f"--volfile-id={VOLUME}"),
            *(f"--log-file={directory / 'client.log'}", self._mount),
        ]
        self._client = Child(client, directory / "client", directory)
        wait_until(lambda: is_mounted(self._mount), "mount of the volume", 60, [self._client])
        wait_until(self._is_writable, "volume that takes writes", 60, [self._client])

    def _start_server(self, space: str, brick: Path) -> None:
        home = brick.parent
        state, logs = home / "state", home / "logs"
        for each in (brick, state, logs):
            each.mkdir(parents=True)
        shutil.copytree(STATE / "groups", state / "groups")  # the named groups of options
        line: list[str | Path] = ["ip", "netns", "exec", space, "sh", "-c", _SERVER, "sh", state, logs]
        server = Child(line, home / "glusterd", home)
        self._servers.append(server)
        wait_until(lambda: self._answers(server), "answer of glusterd", 60, [server])

    def _answers(self, server: Child) -> bool:
        try:
            self._cli(server, "pool", "list")
        except BenchError:
            return False
        return True

    def _cli(self, server: Child, *words: str) -> str:
        return command("nsenter", f"--target={server.pid}", "--mount", "--net", "gluster", "--mode=script", *words)

    def _make_volume(self) -> None:
        first = self._servers[0]
        self._cli(first, "peer", "probe", ADDRESSES[1])
        # The state must be as seen from both sides, or the volume's creation is refused.
        for server in self._servers:
            wait_until(
                lambda: "State: Peer in Cluster (Connected)" in self._cli(server, "peer", "status"),  # noqa: B023
                "connected peer",
                60,
                self._servers,
            )
        bricks = [f"{address}:{brick}" for address, brick in zip(ADDRESSES, self._bricks, strict=True)]
        self._cli(first, "volume", "create", VOLUME, "replica", "2", *bricks, "force")
        self._cli(first, "volume", "set", VOLUME, "group", "virt")
        self._cli(first, "volume", "set", VOLUME, "network.remote-dio", "enable")
        self._cli(first, "volume", "start", VOLUME)

    def _is_writable(self) -> bool:
        probe = self._mount / "probe"
        try:
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError:
            return False
        return True

    def target(self, name: str) -> list[str]:
        return [f"--filename={self._mount / name}"]

    def create(self, name: str, size: int) -> None:
        with (self._mount / name).open("xb") as file:
            os.truncate(file.fileno(), size)

    def processes(self) -> dict[str, int]:
        found = {}
        for number, space in enumerate(SPACES, 1):
            for pid in map(int, command("ip", "netns", "pids", space).split()):
                role = Path(f"/proc/{pid}/comm").read_text().strip()
                kind = "client" if self._client and pid == self._client.pid else role
                found[f"{kind} {number} ({pid})"] = pid
        return found

    def copies(self) -> list[Path]:
        return self._bricks

    def stop(self) -> None:
        if self._client is None:
            return
        entries = self._cli(self._servers[0], "volume", "heal", VOLUME, "info")
        if entries.count("Number of entries: 0") != 2:
            raise BenchError(f"GlusterFS has something to heal: {entries[-400:]}")
        command("umount", self._mount)
        wait_until(lambda: self._client is None or self._client.process.poll() is not None, "end of the client", 30)
        self._cli(self._servers[0], "volume", "stop", VOLUME, "force")
        for server in self._servers:
            server.stop()
        self.abandon()

    def abandon(self) -> None:
        """Bricks and the self-heal daemons leave their parents: they are found by the namespaces made here."""
        for child in [*self._servers, *([self._client] if self._client else [])]:
            child.kill()
        for space in SPACES:
            if os.path.exists(f"/run/netns/{space}"):
                for pid in map(int, command("ip", "netns", "pids", space).split()):
                    try:
                        os.kill(pid, 9)
                    except ProcessLookupError:
                        pass
                command("ip", "netns", "del", space)
        if self._servers:
            unmount(self._mount)


def _connect_namespaces() -> None:
    for space in SPACES:
        command("ip", "netns", "add", space)
    command(
        *("ip", "link", "add", "veth-1", "netns", SPACES[0], "type", "veth"),
        *("peer", "name", "veth-2", "netns", SPACES[1]),
    )
    for number, (space, address) in enumerate(zip(SPACES, ADDRESSES, strict=True), 1):
        command("ip", "-n", space, "address", "add", f"{address}/24", "dev", f"veth-{number}")
        command("ip", "-n", space, "link", "set", f"veth-{number}", "up")
        command("ip", "-n", space, "link", "set", "lo", "up")
