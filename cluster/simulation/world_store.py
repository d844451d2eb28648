"""Millions of worlds in little memory: a world is three numbers, of its two servers and of all the rest.

Servers and rests are few, for worlds are mostly combinations of the same ones; each is kept once, as it is. So equality
is exact, and what is taken out again is made of the same objects: whoever remembers something of a server or a module
may do so by its address.
"""

from __future__ import annotations

from array import array

from hotpair.cluster.simulation.world import Server, World

SERVER_BITS = 20
REST_BITS = 24  # together 64: a world's number fits into one machine word
_SERVER_MASK = (1 << SERVER_BITS) - 1

Rest = tuple[object, ...]


class WorldStore:
    """Worlds by number, in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._packed = array("Q")
        self._servers = (_Servers(), _Servers())  # one for each side: their modules' settings differ
        self._rest_numbers: dict[Rest, int] = {}
        self._rests: list[Rest] = []

    def __len__(self) -> int:
        return len(self._packed)

    def add(self, world: World) -> int:
        """Its number, which is the store's old length if it is new."""
        a, b = world.servers
        rest = world[1:]
        r = self._rest_numbers.get(rest)
        if r is None:
            r = self._rest_numbers[rest] = len(self._rests)
            assert r < 1 << REST_BITS
            self._rests.append(rest)
        packed = (r << SERVER_BITS | self._servers[1].number(b)) << SERVER_BITS | self._servers[0].number(a)
        count = len(self._packed)
        number = self._numbers.setdefault(packed, count)
        if number == count:
            self._packed.append(packed)
        return number

    def __getitem__(self, number: int) -> World:
        packed = self._packed[number]
        a = self._servers[0].kept[packed & _SERVER_MASK]
        b = self._servers[1].kept[packed >> SERVER_BITS & _SERVER_MASK]
        return World((a, b), *self._rests[packed >> 2 * SERVER_BITS])  # type: ignore[arg-type]

    def sizes(self) -> tuple[int, int, int]:
        """How many different first servers, second servers and rests there are."""
        return len(self._servers[0].kept), len(self._servers[1].kept), len(self._rests)


class _Servers:
    """Equal servers are one object with one number."""

    def __init__(self) -> None:
        self.kept: list[Server] = []
        self._numbers: dict[Server, int] = {}
        self._by_address: dict[int, int] = {}

    def number(self, server: Server) -> int:
        number = self._by_address.get(id(server))
        if number is not None:
            return number
        number = self._numbers.get(server)
        if number is None:
            number = self._numbers[server] = len(self.kept)
            assert number <= _SERVER_MASK
            self.kept.append(server)
            self._by_address[id(server)] = number
        return number
