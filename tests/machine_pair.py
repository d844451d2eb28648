"""Two module state machines that run real mirror processes: a supervisor of the fewest lines, for tests.

Real are: the machines, the processes, their control sockets, the stream between them, both disks. Not real are the
pulses (handed over in memory), the arbiter (its pure rules, in memory) and the VM, which is on when it is told to be.
Each effect is carried out as its docstring says, and each event comes from what a process reports.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from hotpair.actors.shelf_io import flush_file_system
from hotpair.cluster import arbitration, record_io
from hotpair.cluster import record as records
from hotpair.cluster.arbitration import Standing, granted, keeps_epochs, move, refused, unreachable
from hotpair.cluster.module_events import (
    Agree,
    Answered,
    Ask,
    CancelTimer,
    Command,
    Commanded,
    Effect,
    Event,
    FailTap,
    GoAlone,
    HandOver,
    Leave,
    Look,
    Looked,
    MirrorReported,
    Now,
    PeerHeard,
    PeerLost,
    Remember,
    Reply,
    Salvage,
    SendPulse,
    SetTimer,
    Started,
    StartMirror,
    StartVm,
    StopMirror,
    StopVm,
    Store,
    Tell,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import Module, Role, Settings, State, Vm, ready, view
from hotpair.cluster.record import Record, Side
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError, Refused
from hotpair.replication.own_log_io import bytes_changed
from hotpair.replication.process_io import boot_id
from tests.faults import Link
from tests.mirror_pair import MirrorPair, MirrorProcess, ReservedPort
from tests.mirror_reports import Watch, mirror_of, record_of

PULSE_S, TIMEOUT_S = 0.2, 1.5
WAIT_S = 40.0
EXTENT = 1 << 16


class Server:
    """One module on one server."""

    def __init__(self, world: World, settings: Settings, directory: str, state: str) -> None:
        self.world = world
        self.directory, self.state = directory, state
        self.port = ReservedPort()
        self.link = Link(self.port.number)  # in front of its target
        self.peer: Server
        self.module = Module(settings=settings)
        self.events: deque[Event] = deque()
        self.timers: dict[Timer, float] = {}
        self.process: MirrorProcess | None = None
        self.watch: Watch | None = None
        self.salvaged: list[str] = []
        self.done: list[Effect] = []
        self.heard_at = time.monotonic()
        self.is_lost = False
        self._least = 0  # reports with a lower number are older than a verdict
        self._told = 0
        self._pulsed_at = 0.0

    @property
    def record(self) -> Record | None:
        return record_io.load(f"{self.state}/record")

    @property
    def is_green(self) -> bool:
        return ready(self.module)

    @property
    def sees_green(self) -> bool:
        """The peer's last pulse has said so."""
        return self.module.peer is not None and self.module.peer.ready

    # ---- events

    def take(self, event: Event) -> None:
        self.module, effects = step(self.module, event, Now(time.monotonic(), secrets.token_bytes(16)))
        for effect in effects:
            self.do(effect)

    def turn(self) -> None:
        now = time.monotonic()
        self._look_at_the_process()
        for timer, at in list(self.timers.items()):
            if now >= at:
                del self.timers[timer]
                self.take(TimerFired(timer))
        if now - self._pulsed_at >= PULSE_S:
            self.pulse()
        linked = self.module.mirror is not None and self.module.mirror.linked
        if linked:
            self.heard_at = now
        if now - self.heard_at > TIMEOUT_S and not self.is_lost:
            self.is_lost = True
            self.events.append(PeerLost())
        while self.events:
            self.take(self.events.popleft())

    def pulse(self) -> None:
        self._pulsed_at = time.monotonic()
        if self.world.pulses:
            self.peer.heard_at, self.peer.is_lost = self._pulsed_at, False
            self.peer.events.append(PeerHeard(view(self.module)))

    def _look_at_the_process(self) -> None:
        if self.process is None:
            return
        if self.watch is None and self.process.running:
            try:
                self.watch = Watch(self.state)
            except MirrorError:
                return  # it is about to be there, or to end
            self._least = self._told = 0
        if self.watch is not None and self.watch.reports:
            self.hear(self.watch.reports[-1][1])
        if not self.process.running and (self.watch is None or self.watch.ended):
            self.process.close()
            self.process = self.watch = None
            self.take(MirrorReported(None, self.record, bytes_changed(self.state, self.record)))

    def hear(self, report: dict[str, Any]) -> None:
        if report["number"] > self._told and report["number"] >= self._least:
            self._told = report["number"]
            self.take(MirrorReported(mirror_of(report), record_of(report), report["bytes_changed"]))

    # ---- effects

    def do(self, effect: Effect) -> None:
        self.done.append(effect)
        match effect:
            case Store():
                assert self.process is None, "the mirror keeps the record while it runs"
                if effect.flush:
                    flush_file_system(self.directory)
                record_io.store(f"{self.state}/record", effect.record)
            case StartMirror():
                self._start(effect.role, effect.alone)
            case StopMirror():
                self._tell("shutdown")
            case GoAlone():
                self._tell("go_alone", based_on=records.encode(effect.based_on), record=records.encode(effect.record))
            case FailTap():
                self._tell("fail_tap")
            case HandOver():
                self._tell("handover")
            case Leave():
                self._tell("leave")
            case Agree():
                based_on = records.encode(effect.based_on)
                self._tell("agree", based_on=based_on, epoch=effect.epoch, mine_first=effect.mine_first)
            case Salvage():
                self._salvage(effect.generation)
            case StartVm():
                self.events.append(VmReported(Vm.ON))
            case StopVm():
                self.events.append(VmReported(Vm.OFF))
            case Ask():
                self.events.append(self.world.answer(effect))
            case Look():
                self.events.append(Looked(effect.request_id, self.world.standing))
            case SendPulse():
                self.pulse()
            case SetTimer():
                self.timers[effect.timer] = time.monotonic() + effect.after_s
            case CancelTimer():
                self.timers.pop(effect.timer, None)
            case Remember() | Tell() | Reply():
                pass

    def _start(self, role: Role, alone: bool) -> None:
        assert self.process is None
        arguments = [role.value, "--dir", self.directory, "--state", self.state]
        if role is Role.SOURCE:
            arguments += ["--peer", self.peer.link.address, "--extent-size", str(EXTENT), *(["--alone"] * alone)]
        else:
            arguments += ["--listen", f"127.0.0.1:{self.port.number}"]
        log = f"{self.world.pair.base}/{self.module.settings.server}.log"
        self.process = MirrorProcess(role.value, arguments, log, self.world.pair.environment())

    def _tell(self, command: str, **arguments: Any) -> None:
        assert self.process is not None
        try:
            with ControlClient(self.state) as control:
                self._least = control.ask(command, **arguments).get("number", 0)
        except Refused as refusal:
            self._least = refusal.report["number"]
            self._told = self._least - 1  # it is heard although it was heard before: what was assumed is not so
            self.hear(refusal.report)
        except MirrorError:
            self.process.signal(signal.SIGTERM)  # it has only just been started, or is ending

    def _salvage(self, generation: bytes) -> None:
        command = [sys.executable, "-P", "-m", "hotpair.replication", "salvage", "--dir", self.directory]
        command += ["--state", self.state, "--generation", generation.hex()]
        result = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
        self.salvaged.append(result.stdout.splitlines()[0].rpartition(" ")[2])

    def command(self, command: Command) -> None:
        before = len(self.done)
        self.take(Commanded(command))
        reply = next(effect for effect in self.done[before:] if isinstance(effect, Reply))
        assert reply.accepted, reply.why

    def __str__(self) -> str:
        module = self.module
        return f"{module.settings.server}: {module.state.value} {module.reason.value!r} {module.mirror} vm={module.vm}"


class World:
    """Two servers and an arbiter."""

    def __init__(self, pair: MirrorPair, kind: arbitration.Kind, split_brain: str = "manual") -> None:
        self.pair = pair
        self.kind = kind
        self.pulses = True
        self.standing = Standing(0, None)
        self.without_arbiter: set[str] = set()  # servers that cannot reach it
        places = ((pair.source_dir, pair.source_state), (pair.target_dir, pair.target_state))
        self.servers = []
        for number, (directory, state) in enumerate(places):
            side = Side.ME if number == 0 else Side.PEER
            settings = Settings(
                "pair", "vm", ("one", "two")[number], ("two", "one")[number], kind, first=side, data_on=side,
                retry_s=0.5, split_brain=split_brain,
            )  # fmt: skip
            self.servers.append(Server(self, settings, directory, state))
        self.one, self.two = self.servers
        self.one.peer, self.two.peer = self.two, self.one
        for server in self.servers:
            server.take(Started(server.record, False, False, boot_id(), None, Vm.OFF))

    def answer(self, ask: Ask) -> Answered:
        claim = ask.claim
        if claim.server in self.without_arbiter:
            return Answered(unreachable(claim, ""))
        if not keeps_epochs(self.kind):
            return Answered(granted(claim, ""))
        moved = move(self.standing, claim)
        self.standing = moved.after
        return Answered((granted if moved.granted else refused)(claim, "", moved.after))

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Let everything happen until it is so."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not {what}: {self.one}; {self.two}\n{self.logs()}"
            for server in self.servers:
                server.turn()
            time.sleep(0.01)

    def until_states(self, one: State, two: State) -> None:
        """Both there, and green where that is a matter of more than not running."""

        def there() -> bool:
            wanted = ((self.one, one), (self.two, two))
            return all(
                server.module.state is state
                and (server.is_green or state in (State.STOP, State.WAIT))
                and (state not in (State.PRIM, State.SECOND) or server.sees_green)
                for server, state in wanted
            )

        self.until(there, f"{one.value} and {two.value}")

    def cut(self) -> None:
        """Nothing goes from one server to the other."""
        self.pulses = False
        for server in self.servers:
            server.link.cut(refuse=True)

    def heal(self) -> None:
        self.pulses = True
        for server in self.servers:
            server.link.allow()

    def logs(self) -> str:
        text = ""
        for server in self.servers:
            path = f"{self.pair.base}/{server.module.settings.server}.log"
            if os.path.exists(path):
                with open(path, errors="replace") as log:
                    text += f"--- {path}\n{log.read()[-4000:]}"
        return text

    def stop(self) -> None:
        """As the operator would: the second first."""
        for server in sorted(self.servers, key=lambda one: one.module.state is not State.SECOND):
            if server.module.state is not State.STOP:
                server.command(Command.STOP)
            self.until(lambda server=server: server.module.state is State.STOP, "stopped")  # type: ignore[misc]

    def close(self) -> None:
        for server in self.servers:
            server.link.close()
            if server.process is not None:
                server.process.signal(signal.SIGKILL)
                self.pair.abort()
                server.process.wait_end(10)
            server.port.close()


@contextmanager
def two_servers(kind: arbitration.Kind, split_brain: str = "manual") -> Any:
    """A pair whose data is on the first server; nothing runs yet."""
    with MirrorPair() as pair:
        world = World(pair, kind, split_brain)
        try:
            yield world
        finally:
            world.close()
