"""Reads safekit's files and writes hotpair's, all of them or none, and never over one that is there."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hotpair.actors.home import Home
from hotpair.cluster.admission import NAME_RULE, is_name
from hotpair.cluster.configuration import Cluster, Module, parse_cluster, parse_module
from hotpair.cluster.configuration_checks import conflicts
from hotpair.cluster.configuration_files import CLUSTER_FILE
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.pair_change import FIRST_MIRROR_PORT
from hotpair.safekit_import import NotConverted, convert_cluster, convert_module, splitbrain_of
from hotpair.safekit_xml import LARGEST_DOCUMENT, BadXml, Element, parse


class NotImported(Exception):
    """Nothing was written; the text says why."""


def import_files(home: Home, userconfig: str, cluster: str | None, name: str | None) -> list[str]:
    """What was written, and what has no equivalent, line by line. Raises NotImported, ConfigurationError."""
    module = name or _name_of(userconfig)
    if not is_name(module):
        raise NotImported(f"a module cannot be called {module[:80]!r}: --name, with {NAME_RULE}")
    path = home.module_file(module)
    if os.path.lexists(path):
        raise NotImported(f"{path} is there already: remove it first, or give another --name")
    root = _read(userconfig)
    new: list[tuple[str, str]] = []
    notes: list[str] = []
    if cluster is None:
        if not os.path.exists(home.cluster_file):
            raise NotImported(f"there is no {home.cluster_file} yet: give cluster.xml as well, or write it first")
        pair = load_cluster(home.configuration)
    else:
        pair, text, notes = _cluster(home, cluster, root)
        new.append((home.cluster_file, text))
    try:
        others = load_modules(home.configuration, pair).accepted.values()
        servers = [server.name for server in pair.servers]
        converted = convert_module(root, servers, _free_port(others))
        made = parse_module(converted.text, module, pair, path)
    except NotConverted as error:
        raise NotImported(f"{userconfig}: {error}") from error
    for _, what in conflicts(made, others):
        raise NotImported(f"{userconfig}: {what}")
    new.append((path, converted.text))
    _write(new)
    return [
        *(f"written: {path}" for path, _ in new),
        *(f"to do: {cluster}: {note}" for note in notes),
        *(f"to do: {userconfig}: {note}" for note in converted.notes),
    ]


def _cluster(home: Home, path: str, userconfig: Element) -> tuple[Cluster, str, list[str]]:
    if os.path.lexists(home.cluster_file):
        raise NotImported(f"{home.cluster_file} is there already: leave cluster.xml out, or remove it first")
    heart = next((one for one in userconfig.walk() if one.name == "heart"), None)
    try:
        converted = convert_cluster(_read(path), "pair", heart, splitbrain_of(userconfig))
    except NotConverted as error:
        raise NotImported(f"{path}: {error}") from error
    return parse_cluster(converted.text, CLUSTER_FILE), converted.text, converted.notes


def _name_of(userconfig: str) -> str:
    """safekit keeps it as modules/NAME/conf/userconfig.xml."""
    path = os.path.abspath(userconfig)
    folder = os.path.dirname(path)
    if os.path.basename(folder) == "conf":
        return os.path.basename(os.path.dirname(folder))
    return os.path.splitext(os.path.basename(path))[0]


def _free_port(others: Iterable[Module]) -> int:
    taken = {module.mirror_port for module in others}
    return next(port for port in range(FIRST_MIRROR_PORT, 65536) if port not in taken)


def _read(path: str) -> Element:
    try:
        with open(path, "rb") as opened:
            data = opened.read(LARGEST_DOCUMENT + 1)
        return parse(data)
    except OSError as error:
        raise NotImported(f"{path} cannot be read: {error.strerror}") from error
    except BadXml as error:
        raise NotImported(f"{path}: {error}") from error


def _write(files: list[tuple[str, str]]) -> None:
    """All of them, or none."""
    written: list[str] = []
    try:
        for path, text in files:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="utf-8") as opened:
                written.append(path)
                opened.write(text)
    except OSError as error:
        for path in written:
            os.unlink(path)
        raise NotImported(f"{error.filename} cannot be written: {error.strerror}") from error
