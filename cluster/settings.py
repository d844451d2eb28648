"""What the module state machine is told once and for all, from the configuration. Pure code."""

from __future__ import annotations

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.configuration import Cluster, Module
from hotpair.cluster.module_values import Settings
from hotpair.cluster.record import Side


# Between two questions. A primary that holds its VM's writes has no time to lose; a management controller is not hurried.
RETRY_S = 0.5
RETRY_FENCE_S = 5.0


def settings_of(module: Module, cluster: Cluster, server: str) -> Settings:
    """The settings of this module on this server of the pair. KeyError for a name that is neither server's."""
    peer = cluster.peer_of(server).name
    sides: dict[str | None, Side] = {server: Side.ME, peer: Side.PEER, None: Side.NOBODY}
    kind = Kind(cluster.arbitration.kind)
    return Settings(
        pair=cluster.name,
        module=module.name,
        server=server,
        peer=peer,
        kind=kind,
        first=sides[cluster.servers[0].name],
        preferred=sides[module.preferred],
        data_on=sides[module.data_on],
        automatic_failback=module.failback == "automatic",
        retry_s=RETRY_FENCE_S if kind is Kind.FENCE else RETRY_S,
        ask_timeout_s=cluster.arbitration.answered_s,
        split_brain=module.split_brain,
    )
