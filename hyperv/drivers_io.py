"""Which drivers are installed: the entry point group `hotpair.drivers`, ours and those of partners."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from hotpair.hyperv.driver import Driver, Factory, Place
from hotpair.hyperv.errors import UnknownDriver

GROUP = "hotpair.drivers"


def installed(points: Iterable[EntryPoint] | None = None) -> tuple[str, ...]:
    """The names that `driver` in `[vm]` can have, sorted."""
    return tuple(sorted({point.name for point in _points(points)}))


def problem(name: str, points: Iterable[EntryPoint] | None = None) -> str | None:
    """Why there is no driver of that name; None when there is one. For whoever checks a configuration."""
    names = installed(points)
    if name in names:
        return None
    return f'no driver "{name}" is installed here: give one of {", ".join(names) or "none, for none is installed"}'


class Maker:
    """Makes drivers of one name for one place. The name is looked up once: that reads every package's metadata, which
    takes 10 ms and more, and a VM is looked at all the time."""

    def __init__(self, name: str, place: Place) -> None:
        self._name = name
        self._place = place
        self._factory: Factory | None = None

    def __call__(self) -> Driver:
        """Raises UnknownDriver, until it is installed."""
        if self._factory is None:
            self._factory = find(self._name)
        return self._factory(self._place)


def make(name: str, place: Place, points: Iterable[EntryPoint] | None = None) -> Driver:
    """The driver for a module. Raises UnknownDriver."""
    return find(name, points)(place)


def find(name: str, points: Iterable[EntryPoint] | None = None) -> Factory:
    """What makes drivers of that name. Raises UnknownDriver."""
    missing = problem(name, points)
    if missing is not None:
        raise UnknownDriver(missing)
    found = sorted((point for point in _points(points) if point.name == name), key=lambda point: point.value)
    if len({point.value for point in found}) > 1:
        packages = ", ".join(point.value for point in found)
        raise UnknownDriver(f'two drivers are called "{name}" ({packages}): uninstall one')
    try:
        factory: Factory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise UnknownDriver(f'the driver "{name}" ({found[0].value}) cannot be loaded: {error}') from error
    return factory


def _points(points: Iterable[EntryPoint] | None) -> list[EntryPoint]:
    return list(entry_points(group=GROUP) if points is None else points)
