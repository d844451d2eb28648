"""The configuration's files below the home directory. A module that is wrong does not keep the others from running."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from hotpair.cluster.configuration import Cluster, Module, parse_cluster, parse_module
from hotpair.cluster.configuration_checks import conflicts
from hotpair.cluster.configuration_files import CLUSTER_FILE, MODULES_DIRECTORY, SUFFIX
from hotpair.cluster.configuration_keys import ConfigurationError, Problem, line_of
from hotpair.cluster.pulse import KEY_BYTES

LARGEST_FILE_BYTES = 1 << 20  # a thousand times what anybody writes


class BadKey(Exception):
    """The pair's key cannot be used; the text says why, and never the key."""


@dataclass(frozen=True)
class Modules:
    """`refused`: what is wrong, by the module's name."""

    accepted: Mapping[str, Module]
    refused: Mapping[str, ConfigurationError]


def load_cluster(home: str) -> Cluster:
    """Raises ConfigurationError."""
    return parse_cluster(_read(os.path.join(home, CLUSTER_FILE), CLUSTER_FILE), CLUSTER_FILE)


def load_modules(home: str, cluster: Cluster) -> Modules:
    """All of modules/*.toml, in the order of their names. Raises ConfigurationError if the directory is unreadable."""
    directory = os.path.join(home, MODULES_DIRECTORY)
    try:
        entries = sorted(os.listdir(directory))
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise _unreadable(MODULES_DIRECTORY, error) from error
    accepted: dict[str, Module] = {}
    refused: dict[str, ConfigurationError] = {}
    for entry in entries:
        name, suffix = os.path.splitext(entry)
        if suffix != SUFFIX or name.startswith("."):  # editors leave files of other names behind
            continue
        try:
            accepted[name] = _load_module(directory, name, cluster, accepted)
        except ConfigurationError as error:
            refused[name] = error
    return Modules(accepted, refused)


def _load_module(directory: str, name: str, cluster: Cluster, others: Mapping[str, Module]) -> Module:
    """Raises ConfigurationError."""
    file = f"{MODULES_DIRECTORY}/{name}{SUFFIX}"
    text = _read(os.path.join(directory, name + SUFFIX), file)
    module = parse_module(text, name, cluster, file)
    found = conflicts(module, others.values())
    if found:
        raise ConfigurationError([Problem(file, line_of(text, (key,)), key, what) for key, what in found])
    return module


def _read(path: str, file: str) -> str:
    try:
        with open(path, "rb") as opened:
            data = opened.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(data) > LARGEST_FILE_BYTES:
        raise ConfigurationError([Problem(file, None, "", f"it has more than {LARGEST_FILE_BYTES} bytes")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([Problem(file, line, "", "this is not UTF-8: save the file as UTF-8")]) from error


def _unreadable(file: str, error: OSError) -> ConfigurationError:
    return ConfigurationError([Problem(file, None, "", f"it cannot be read: {error.strerror} ({error.filename})")])


def load_key(path: str) -> bytes:
    """The pair's key, from a file that only its owner can read. Raises BadKey."""
    try:
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
            data = opened.read(4 * KEY_BYTES)
    except OSError as error:
        raise BadKey(
            f"{path} cannot be read: {error.strerror}. Make it once with openssl rand -hex {KEY_BYTES}, and "
            "copy it to the other server"
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise BadKey(f"{path} can be read by others than its owner: chmod 600 {path}")
    text = data.strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(text) != 2 * KEY_BYTES or len(key) != KEY_BYTES or not any(key):
        raise BadKey(f"{path} does not hold {2 * KEY_BYTES} hexadecimal digits: openssl rand -hex {KEY_BYTES}")
    return key
