"""What runs in the supervisor's actor on one server: its modules, and whoever serves them to people and programs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hotpair.actors.groups import Report
from hotpair.actors.home import Home
from hotpair.actors.module_facts import facts_of
from hotpair.actors.ray_actors import RayGroup, SupervisorActor
from hotpair.actors.supervisor import Supervisor
from hotpair.cluster.arbiters_io import arbiter_of
from hotpair.cluster.configuration import Cluster, Module
from hotpair.cluster.configuration_io import load_cluster, load_key, load_modules
from hotpair.cluster.settings import settings_of
from hotpair.http_server_io import serve
from hotpair.replication.process_io import boot_id

log = logging.getLogger("hotpair.service")


class _Groups:
    """Opens modules' groups for the supervisor, as actors beside its own."""

    def __init__(
        self, actor: SupervisorActor, cluster: Cluster, server: str, home: Home, key: bytes, boot: str
    ) -> None:
        self._actor = actor
        self._cluster = cluster
        self._server = server
        self._home = home
        self._key = key
        self._boot = boot

    async def open(self, module: Module, hear: Callable[[Report], None]) -> RayGroup:
        facts = facts_of(module, self._cluster, self._server, self._home, key=self._key, boot=self._boot)
        return await self._actor.open(facts, hear)


async def build(home: Home, server: str, api_port: int, actor: SupervisorActor) -> Supervisor:
    """Raises ConfigurationError, BadKey or NotServed. A module that is wrong is said in the log and left out."""
    cluster = load_cluster(home.configuration)
    cluster.peer_of(server)
    key = load_key(home.below(cluster.security.key_file))
    modules, boot = load_modules(home.configuration, cluster), boot_id()
    supervisor = Supervisor(
        home,
        cluster,
        lambda module: settings_of(module, cluster, server),
        _Groups(actor, cluster, server, home, key, boot),
        arbiter_of(cluster, home.configuration),
        boot=boot,
    )
    for name, error in modules.refused.items():
        log.error("module %s is left out: %s", name, error)
    await serve(supervisor, home, server=server, port=api_port)  # first: people see how far it is
    supervisor.add_all(modules.accepted.values())
    return supervisor
