"""What the API's routes work with: the supervisor, and what it may not be waited for. In its event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from hotpair.access import Token, TokensUnusable
from hotpair.actors.home import Home
from hotpair.actors.open_module import Standing
from hotpair.actors.supervisor import Supervisor
from hotpair.api_values import Module
from hotpair.event_hub import Entry, Hub
from hotpair.in_thread import in_thread
from hotpair.refreshed import Refreshed
from hotpair.replication.control_client import ControlClient
from hotpair.service_history import History, seen
from hotpair.shown import colour
from hotpair.tokens_io import TOKENS_FILE, load

WAIT_S = 0.1  # for a disk, a driver or a mirror, before a request is answered without
DETAILS_FRESH_S = 0.5  # several who look at the same time ask once
TOKENS_FRESH_S = 1.0  # a token that was removed is refused after so long
THREADS = 8  # blocked by a disk or a mirror that does not answer, at most

T = TypeVar("T")


class Mirrors(Protocol):
    """Asks a module's mirror process; blocks. Raises MirrorError with its reason."""

    def ask(self, module: str, command: str, given: Mapping[str, Any]) -> Mapping[str, Any]: ...


class MirrorSockets:
    """By the mirrors' control sockets."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def ask(self, module: str, command: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        with ControlClient(self._home.mirror_state(module)) as client:
            return client.ask(command, **given)


class TooSlow(Exception):
    """It was begun, and is not done yet."""


class Served:
    """`tokens_problem`: why the file of tokens cannot be used; empty when it can."""

    def __init__(
        self,
        supervisor: Supervisor,
        home: Home,
        *,
        cluster: str,
        server: str,
        peer: str,
        mirrors: Mirrors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.supervisor = supervisor
        self.home = home
        self.cluster = cluster
        self.server = server
        self.peer = peer
        self.mirrors = mirrors
        self.hub = Hub()
        self.tokens_problem = ""
        self._clock = clock
        self._histories: dict[str, History] = {}
        self._details: dict[str, Refreshed[Mapping[str, Any]]] = {}
        self._tokens = Refreshed(self._load_tokens, fresh_s=TOKENS_FRESH_S, wait_s=WAIT_S)
        self._threads = ThreadPoolExecutor(THREADS, "api")
        self._leave = supervisor.listen(self._hear)

    def close(self) -> None:
        self._leave()
        self.hub.close()
        self._tokens.close()
        for details in self._details.values():
            details.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- modules

    def module(self, name: str) -> Module:
        """Raises UnknownModule."""
        return self._shown(self.supervisor.standing(name))

    def modules(self) -> list[Module]:
        return [self._shown(standing) for standing in self.supervisor.standings()]

    def _shown(self, said: Standing) -> Module:
        state = None if said.state is None else said.state.value
        here = colour(state, ready=said.ready, vm=said.vm, plan=said.plan)
        return Module(
            module=said.module,
            server=self.server,
            state=state,
            ready=said.ready,
            colour=here.value,
            reason=said.reason,
            vm=said.vm,
            data=said.data,
            in_sync=said.in_sync,
            maintenance=said.maintenance,
            wanted=said.wanted,
            plan=said.plan,
            peer=self.peer,
            peer_state=said.peer,
            peer_ready=said.peer_ready,
            peer_colour=colour(said.peer, ready=said.peer_ready).value,
            problem=said.problem,
            mirror_reason=said.mirror,
        )

    async def details(self, name: str) -> tuple[Mapping[str, Any], float] | None:
        """What mirror, VM and pulses say, and how old that is; None when nothing was answered yet."""
        self.supervisor.standing(name)  # UnknownModule
        if name not in self._details:
            ask = self.supervisor.details
            self._details[name] = Refreshed(lambda: ask(name), fresh_s=DETAILS_FRESH_S, wait_s=WAIT_S)
        return await self._details[name].get()

    def history(self, name: str) -> History:
        return self._histories.get(name, History())

    def _hear(self, entry: Entry) -> None:
        name = str(entry["module"])
        known = self.supervisor.known(name)
        if known is not None:
            self._histories[name] = seen(self.history(name), known, self._clock())
        self.hub.hear(entry)

    def forget(self, name: str) -> None:
        """A module was removed: another one of this name begins anew."""
        self._histories.pop(name, None)
        details = self._details.pop(name, None)
        if details is not None:
            details.close()

    # ---- what may block

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Raises TooSlow after WAIT_S; the work goes on."""
        try:
            return await in_thread(self._threads, work, WAIT_S)
        except TimeoutError:
            raise TooSlow from None

    async def tokens(self) -> tuple[Token, ...]:
        """None is accepted while the file cannot be used."""
        found = await self._tokens.get()
        return () if found is None else found[0]

    async def _load_tokens(self) -> tuple[Token, ...]:
        path = self.home.below(TOKENS_FILE)
        try:
            tokens = await asyncio.get_running_loop().run_in_executor(self._threads, load, path)
        except TokensUnusable as error:
            self.tokens_problem = str(error)
            return ()
        self.tokens_problem = ""
        return tokens
