"""Where things lie below the home directory of one server. Pure: names only."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hotpair.cluster.configuration_files import CLUSTER_FILE, MODULES_DIRECTORY, SUFFIX


@dataclass(frozen=True)
class Home:
    """Absolute paths. `configuration`: cluster.toml, modules/, keys; `state`: what hotpair writes."""

    configuration: str
    state: str

    @classmethod
    def at(cls, path: str) -> Home:
        """Everything below one directory."""
        path = os.path.abspath(path)
        return cls(path, os.path.join(path, "state"))

    @classmethod
    def standard(cls) -> Home:
        """Where a Debian package would put it."""
        return cls("/etc/hotpair", "/var/lib/hotpair")

    @property
    def cluster_file(self) -> str:
        return os.path.join(self.configuration, CLUSTER_FILE)

    def module_file(self, module: str) -> str:
        return os.path.join(self.configuration, MODULES_DIRECTORY, module + SUFFIX)

    def below(self, path: str) -> str:
        """A path in the configuration: relative ones are below the home directory."""
        return os.path.join(self.configuration, path)

    def module_state(self, module: str) -> str:
        return os.path.join(self.state, "modules", module)

    def mirror_state(self, module: str) -> str:
        """Of the mirror process: the record and the dirty log are in here as well."""
        return os.path.join(self.module_state(module), "mirror")

    def driver_state(self, module: str) -> str:
        return os.path.join(self.module_state(module), "driver")

    def overwrite_mark(self, module: str) -> str:
        """A file that is there when what was in the module's directory before may be replaced with the peer's copy."""
        return os.path.join(self.module_state(module), "overwrite")

    def mirror_log(self, module: str) -> str:
        return os.path.join(self.module_state(module), "mirror.log")

    def application_log(self, module: str) -> str:
        return os.path.join(self.module_state(module), "application.log")

    def event_log(self, module: str) -> str:
        return os.path.join(self.module_state(module), "events.jsonl")

    @property
    def ray(self) -> str:
        return os.path.join(self.state, "ray")

    @property
    def socket(self) -> str:
        """Of the HTTP API, for local root."""
        return os.path.join(self.state, "api.sock")
