"""What a module's driver is made with, from the configuration. Pure."""

from __future__ import annotations

from hotpair.actors.home import Home
from hotpair.cluster.configuration import Module
from hotpair.hyperv.driver import Place


def place_of(module: Module, home: Home, server: str) -> Place:
    return Place(
        module=module.name,
        directory=home.below(module.directory),
        state_directory=home.driver_state(module.name),
        options=module.vm.options,
        application_log=home.application_log(module.name),
        lock=home.driver_state(module.name) + ".lock",
        server=server,
    )
