"""The API's routes about modules: standings, commands, verify."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException

from hotpair.access import Role
from hotpair.api_reading import read
from hotpair.api_requests import Order, Verify
from hotpair.api_values import Checker, Details, Done, Module, Verification
from hotpair.cluster.module_events import Command
from hotpair.cluster.module_values import Role as MirrorRole
from hotpair.record_shown import readable
from hotpair.replication.errors import MirrorError
from hotpair.served import Served, TooSlow

log = logging.getLogger("hotpair.api")

Needs = Callable[[Role], Any]

# What decides whose data is kept is not for those who only run modules.
NEEDS_ADMIN = frozenset({Command.PRIM, Command.PRIM_FORCE, Command.SECOND, Command.SECOND_FULL})


def command_of(order: Order) -> Command:
    """HTTPException for words that do not go together."""
    if order.force and order.command != "prim":
        raise HTTPException(400, "force goes with prim only.")
    if order.full and order.command != "second":
        raise HTTPException(400, "full goes with second only.")
    if (order.on is None) is (order.command == "maintenance"):
        raise HTTPException(400, "on is given with maintenance, and with nothing else: true or false.")
    words = order.command
    if order.on is not None:
        return Command(f"{words} {'on' if order.on else 'off'}")
    return Command(words + (" --force" if order.force else " --full" if order.full else ""))


def modules_router(served: Served, needs: Needs) -> APIRouter:
    router = APIRouter(tags=["modules"])
    may_see, may_run = needs(Role.MONITOR), needs(Role.CONTROL)
    who_decides: Any = may_run.dependency  # its answer is the role

    @router.get("/modules", response_model=list[Module], dependencies=[may_see])
    async def modules() -> list[Module]:
        """All modules, in the order of their names."""
        return served.modules()

    @router.get("/modules/{module}", response_model=Details, dependencies=[may_see])
    async def one(module: str) -> Details:
        """One module, with what its mirror, its VM and its pulses say."""
        return await _details(served, module)

    @router.post("/modules/{module}/commands", response_model=Done)
    async def command(module: str, order: Order, role: Role = Depends(who_decides)) -> Done:  # noqa: B008
        """Give a command. It is accepted or refused at once; what it does takes its time.

        prim and second need the role admin, all others control.
        """
        given = command_of(order)
        if given in NEEDS_ADMIN and role < Role.ADMIN:
            raise HTTPException(403, f"{given.value} decides whose data is kept: it needs the role admin.")
        reply = await served.supervisor.command(module, given)
        if not reply.accepted:
            raise HTTPException(409, reply.why)
        return Done()

    @router.post("/modules/{module}/verify", response_model=Done, dependencies=[may_run])
    async def verify(module: str, given: Verify, request: Request) -> Done:
        """Begin to compare both copies, on the server that runs the module; it goes on running."""
        return await _ask(served, module, "verify_start", {"repair": given.repair})

    @router.delete("/modules/{module}/verify", response_model=Done, dependencies=[may_run])
    async def end_verify(module: str) -> Done:
        """End the comparison."""
        return await _ask(served, module, "verify_stop", {})

    @router.get("/modules/{module}/verify", response_model=Verification, dependencies=[may_see])
    async def verification(module: str) -> Verification:
        """The comparison under way, or the last one of the mirror process that runs now."""
        found = await served.details(module)
        said = None if found is None else found[0].get("replication", {}).get("verify")
        return read(Verification, {**(said or {}), "known": said is not None})

    @router.post("/modules/{module}/retry", response_model=Done, dependencies=[may_run])
    async def retry(module: str) -> Done:
        """Have the mirror try its peer's copy again now, on the server that runs the module."""
        return await _ask(served, module, "retry", {})

    @router.post("/shutdown", response_model=Done, dependencies=[needs(Role.ADMIN)])
    async def shutdown() -> Done:
        """Begin to stop all modules here, the peer's copies first, as before the host goes down.

        What is wanted of them stays: they are started again at the next boot, where their `boot` says so.
        """
        served.supervisor.begin_to_stop_all()
        return Done()

    return router


async def _details(served: Served, name: str) -> Details:
    shown = served.module(name)
    configured, known = served.supervisor.configured(name), served.supervisor.known(name)
    found = await served.details(name)
    said, age = ({}, None) if found is None else found
    return Details(
        module=shown,
        directory=configured.directory,
        mirror_port=configured.mirror_port,
        driver=configured.vm.driver,
        preferred=configured.preferred,
        failback=configured.failback,
        split_brain=configured.split_brain,
        record=None if known is None else readable(known.record),
        bytes_changed=None if known is None else known.bytes_changed,
        mirror=dict(said.get("replication", {})),
        vm=dict(said.get("vm", {})),
        heartbeat=dict(said.get("heartbeat", {})),
        checkers=checkers_of(served, name),
        age_s=None if age is None else round(age, 3),
    )


def checkers_of(served: Served, name: str) -> list[Checker]:
    """In the order of their names."""
    actions = {one.name: one.action.value for one in served.supervisor.configured(name).checkers}
    return [
        Checker(
            name=one.name,
            kind=one.kind,
            action=actions[one.name],
            finding=one.finding.value,
            since=one.since,
            detail=one.detail,
        )
        for one in served.supervisor.checks(name)
    ]


async def _ask(served: Served, name: str, command: str, given: dict[str, Any]) -> Done:
    """Ask the mirror process; what takes it longer than a request may take goes on by itself."""
    known = served.supervisor.known(name)
    mirror = None if known is None else known.mirror
    if mirror is None or mirror.role is not MirrorRole.SOURCE:
        word = command.partition("_")[0]
        raise HTTPException(409, f"{name} does not run here: {word} is for the server that runs it.")
    try:
        await served.in_thread(lambda: served.mirrors.ask(name, command, given))
    except MirrorError as error:
        raise HTTPException(409, str(error)) from error
    except TooSlow:
        log.info("%s: %s takes longer", name, command)
        return Done(note="The mirror is busy; look again whether it has begun.")
    return Done()
