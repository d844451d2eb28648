"""What keeps QEMU from starting a module here: options, programs, the description and the files it names."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from dataclasses import dataclass

from hotpair.cluster.configuration_keys import ConfigurationError, Key, choice, text
from hotpair.hyperv.driver import Place
from hotpair.hyperv.options import inside, read_options
from hotpair.hyperv.qemu_arguments import Paths
from hotpair.hyperv.qemu_description import Description, parse_description

LARGEST_DESCRIPTION_BYTES = 1 << 20
LONGEST_SOCKET_PATH = 107  # unix(7)

OPTIONS = (
    Key("description", inside(), "vm.toml", "The VM's description in the module's directory"),
    Key("program", text("a program's name or path"), "qemu-system-x86_64", "QEMU"),
    Key(
        "accelerator",
        choice("auto", "kvm", "tcg"),
        "auto",
        "auto: KVM where a guest really runs with it, otherwise tcg, which emulates the processor",
    ),
)


@dataclass(frozen=True)
class Checked:
    """Without problems, all of it is valid."""

    problems: tuple[str, ...]
    program: str = ""
    accelerator: str = ""
    parsed: Description | None = None

    @property
    def description(self) -> Description:
        assert self.parsed is not None, "only without problems"
        return self.parsed

    @property
    def digest(self) -> str:
        return self.description.digest


def check(place: Place) -> Checked:
    """Everything at once. Raises nothing."""
    values, problems = read_options(OPTIONS, place.options)
    if problems:
        return Checked(problems)
    found = list(_paths(place))
    program = shutil.which(values["program"])
    if program is None:
        found.append(f"{values['program']} is not installed: install QEMU (Debian: qemu-system-x86)")
    try:
        description = _read(place, values["description"])
    except ConfigurationError as error:
        return Checked((*found, *map(str, error.problems)))
    except OSError as error:
        file = posixpath.join(place.directory, values["description"])
        return Checked((*found, f"{file} cannot be read: {error.strerror}: the VM is described there"))
    found += _files(place, description)
    return Checked(tuple(found), program or "", values["accelerator"], description)


def _paths(place: Place) -> list[str]:
    longest = max(map(len, (Paths(place.state_directory).monitor, Paths(place.state_directory).agent)))
    if longest > LONGEST_SOCKET_PATH:
        return [f"{place.state_directory} is too long for sockets: use a shorter home directory"]
    return []


def _read(place: Place, name: str) -> Description:
    """Raises ConfigurationError, OSError."""
    path = posixpath.join(place.directory, name)
    with open(path, "rb") as file:
        data = file.read(LARGEST_DESCRIPTION_BYTES)
    return parse_description(data.decode(errors="replace"), place.module, path)


def _files(place: Place, description: Description) -> list[str]:
    """What the description names must be there; what is written to must be within the mirrored directory."""
    found = []
    written = [disk.file for disk in description.disks] + [description.firmware_variables]
    for name in filter(None, written):
        path = posixpath.join(place.directory, name)
        real, directory = os.path.realpath(path), os.path.realpath(place.directory)
        if os.path.commonpath([real, directory]) != directory:
            found.append(f"{path} leads out of the module's directory, to {real}: it would not be mirrored; move it in")
        elif (problem := _file_problem(path)) is not None:
            found.append(problem)
    for name in filter(None, (description.firmware, description.kernel, description.initrd)):
        if (problem := _file_problem(posixpath.join(place.directory, name))) is not None:
            found.append(problem)
    return found


def _file_problem(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{path} cannot be used: {error.strerror}: put it there, or correct the description"
    return None if stat.S_ISREG(mode) else f"{path} is not a file: put one there, or correct the description"
