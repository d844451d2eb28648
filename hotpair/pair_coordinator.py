"""A change of the pair: checked on both servers, then done on both, or on neither.

First both look and promise; then the other server does it, then this one. If one cannot, what was done is taken back.
What cannot be known, because the other server has not answered in between, is said, and repeating the command
completes it: see pair_change.py.
"""

from __future__ import annotations

import logging

from hotpair.pair_change import Change, difference
from hotpair.pair_channel_io import PeerUnreachable
from hotpair.pair_participant import ChangeFailed, ChangeRefused, Participant, Standing

log = logging.getLogger("hotpair.pair")


class RefusedByPeer(Exception):
    """The other server has said no; nothing was done on either."""


async def standings(here: Participant, there: Participant) -> tuple[Standing, Standing]:
    """Both servers', with the same cluster.toml. Raises ChangeRefused, PeerUnreachable."""
    mine, theirs = await here.standing(), await there.standing()
    text = difference(mine.cluster, theirs.cluster, here.server, there.server)
    if text:
        raise ChangeRefused(text)
    return mine, theirs


async def carry_out(
    change: Change, here: Participant, there: Participant, mine: Standing, theirs: Standing
) -> list[str]:
    """Notes for people. Raises ChangeRefused, RefusedByPeer, PeerUnreachable, ConfigurationError: nothing was done on
    either; ChangeFailed: the text says what is where."""
    await here.prepare(change, tuple(theirs.modules))
    try:
        await there.prepare(change, tuple(mine.modules))
    except BaseException as error:
        await here.undo(change)
        await _undone(change, there)  # its promise would keep others waiting
        if isinstance(error, ChangeRefused):
            raise RefusedByPeer(str(error)) from error
        raise
    try:
        notes = await there.commit(change)
    except ChangeRefused as error:
        await here.undo(change)
        raise RefusedByPeer(str(error)) from error
    except PeerUnreachable as error:
        await here.undo(change)
        if await _undone(change, there):
            raise
        raise ChangeFailed(_unknown(change, here.server, there.server, str(error))) from error
    try:
        return [*notes, *await here.commit(change)]
    except BaseException as error:
        if not await _undone(change, there):
            raise ChangeFailed(_one_sided(change, here.server, there.server, str(error))) from error
        raise


async def _undone(change: Change, there: Participant) -> bool:
    """Whether the other server has certainly nothing of it."""
    try:
        await there.undo(change)
    except (PeerUnreachable, ChangeFailed, ChangeRefused) as error:
        log.error("%s %s on %s: %s", change.kind.value, change.module, there.server, error)
        return False
    return True


def _unknown(change: Change, here: str, there: str, why: str) -> str:
    return (
        f"{why}. Nothing was changed on {here}; whether {there} has done it ({change.kind.value} {change.module}) is "
        "not known. Repeat the command when it answers: it completes what was begun"
    )


def _one_sided(change: Change, here: str, there: str, why: str) -> str:
    return (
        f"{why}. {there} has done it ({change.kind.value} {change.module}) and could not take it back, {here} has not. "
        "Repeat the command: it completes what was begun"
    )
