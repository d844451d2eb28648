"""What the module state machine is told once and for all, from the configuration. Pure code."""

from __future__ import annotations

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.configuration import Cluster, Module
from hotpair.cluster.module_values import Settings
from hotpair.cluster.record import Side

# Between two questions: a primary that holds writes has no time to lose, a management controller is not hurried
_RETRY_S = 0.5
_RETRY_FENCE_S = 5.0


def retry_s(kind: Kind) -> float:
    """How long after a question that was not answered it is put again."""
    return _RETRY_FENCE_S if kind is Kind.FENCE else _RETRY_S


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
        retry_s=retry_s(kind),
        ask_timeout_s=cluster.arbitration.answered_s,
        split_brain=module.split_brain,
    )
