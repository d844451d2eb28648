"""What keeps libvirt from starting a module here: options, virsh, the domain's XML and the files it names."""

from __future__ import annotations

import os
import posixpath
import shutil
from dataclasses import dataclass

from hotpair.cluster.configuration_keys import Key, text
from hotpair.hyperv.driver import Place
from hotpair.hyperv.libvirt_values import Domain, parse_domain
from hotpair.hyperv.options import inside, read_options

LARGEST_XML_BYTES = 1 << 20

OPTIONS = (
    Key("description", inside(), "domain.xml", "The domain's XML in the module's directory"),
    Key("uri", text("a connection of libvirt to this very server"), "qemu:///system", "Which libvirt"),
    Key("program", text("a program's name or path"), "virsh", "virsh"),
)


@dataclass(frozen=True)
class CheckedDomain:
    """Without problems, all of it is valid."""

    problems: tuple[str, ...]
    file: str = ""
    parsed: Domain | None = None

    @property
    def domain(self) -> Domain:
        assert self.parsed is not None, "only without problems"
        return self.parsed


def check(place: Place) -> CheckedDomain:
    """Everything at once. Raises nothing."""
    values, problems = read_options(OPTIONS, place.options)
    if problems:
        return CheckedDomain(problems)
    if shutil.which(values["program"]) is None:
        problems = (f"{values['program']} is not installed: install libvirt's client (Debian: libvirt-clients)",)
    path = posixpath.join(place.directory, values["description"])
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_XML_BYTES).decode(errors="replace")
    except OSError as error:
        said = f"{path} cannot be read: {error.strerror}: put the output of virsh dumpxml --inactive there"
        return CheckedDomain((*problems, said))
    domain, wrong = parse_domain(content, place.module, place.directory, path)
    found = [*problems, *wrong]
    for name in () if domain is None else domain.files:
        real, directory = os.path.realpath(name), os.path.realpath(place.directory)
        if not os.path.exists(name):
            found.append(f"{name} is missing: put it there, or correct {path}")
        elif os.path.commonpath([real, directory]) != directory and not any(name in problem for problem in wrong):
            found.append(f"{name} leads out of the module's directory, to {real}: it would not be mirrored; move it in")
    return CheckedDomain(tuple(found), path, domain)
