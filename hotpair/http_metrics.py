"""The API's /metrics: what is known of each module, for Prometheus. A value that is not known is left out, not zero."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hotpair import __version__
from hotpair.api_values import Module
from hotpair.cluster.module_values import Module as Known
from hotpair.served import Served
from hotpair.service_history import History, runs_here
from hotpair.shown import STATES

Said = Mapping[str, Any]


async def metrics(served: Served) -> tuple[bytes, str]:
    """The text and its media type."""
    shown = served.modules()
    answers = await asyncio.gather(*(served.details(module.module) for module in shown))
    rows = [
        (one, served.supervisor.known(one.module), served.history(one.module), {} if said is None else said[0])
        for one, said in zip(shown, answers, strict=True)
    ]
    registry = CollectorRegistry()
    registry.register(_Snapshot(served, rows))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def out_of_sync_bytes(module: Module, known: Known | None, said: Said) -> float | None:
    """How much the peer's copy may lack, at most; None when that is not known, or not this server's to say."""
    if module.in_sync:
        return 0.0
    filling = said.get("replication", {}).get("reintegration")
    if filling:
        return float(filling["bytes_left"])
    if known is None or known.record is None or not known.record.solo or known.bytes_changed is None:
        return None
    return float(known.bytes_changed)


class _Snapshot:
    """What one scrape is answered with."""

    def __init__(self, served: Served, rows: list[tuple[Module, Known | None, History, Said]]) -> None:
        self._served = served
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        served = self._served
        info = GaugeMetricFamily(
            "hotpair_info", "Always 1; which server this is", labels=["version", "cluster", "server"]
        )
        info.add_metric([__version__, served.cluster, served.server], 1)
        yield info
        yield GaugeMetricFamily("hotpair_modules", "Modules that are open on this server", value=len(self._rows))
        yield self._states()
        yield from self._flags()
        yield self._checkers()
        yield from self._mirror()
        yield from self._pulses()
        yield from self._history()

    def _states(self) -> Metric:
        states = GaugeMetricFamily(
            "hotpair_module_state",
            "1 for the state the module is in on this server, else 0",
            labels=["module", "state"],
        )
        for module, _, _, _ in self._rows:
            for state in STATES:
                states.add_metric([module.module, state], module.state == state)
        return states

    def _flags(self) -> Iterator[Metric]:
        def flag(name: str, what: str, value: Any) -> Metric:
            family = GaugeMetricFamily(f"hotpair_module_{name}", what, labels=["module"])
            for module, known, _, _ in self._rows:
                family.add_metric([module.module], bool(value(module, known)))
            return family

        yield flag("ready", "1 if shown green: ALONE, PRIM run the VM, SECOND can take over", lambda m, k: m.ready)
        yield flag("running", "1 if the VM runs on this server", lambda m, k: k is not None and runs_here(k))
        yield flag("wanted", "1 if the operator wants the module to run", lambda m, k: m.wanted)
        yield flag("maintenance", "1 if automatic failover and checkers are suspended", lambda m, k: m.maintenance)
        yield flag(
            "up_to_date", "1 if this server's copy is not known to be behind", lambda m, k: m.data == "up to date"
        )
        yield flag("in_sync", "1 if the mirror has said that both copies are equal", lambda m, k: m.in_sync)
        yield flag("peer_heard", "1 if the peer says something of this module", lambda m, k: m.peer_state != "")
        yield flag("problem", "1 if its own state cannot be read or stored: nothing is decided", lambda m, k: m.problem)

    def _checkers(self) -> Metric:
        found = GaugeMetricFamily(
            "hotpair_checker_up",
            "1 if the checker found it up, 0 if down; absent while it is not looked at, or cannot be said",
            labels=["module", "checker"],
        )
        for module, _, _, _ in self._rows:
            for one in self._served.supervisor.checks(module.module):
                if one.finding.is_up is not None:
                    found.add_metric([module.module, one.name], one.finding.is_up)
        return found

    def _mirror(self) -> Iterator[Metric]:
        def gauge(name: str, what: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"hotpair_module_{name}", what, labels=["module"])

        behind = gauge("out_of_sync_bytes", "What the peer's copy may lack, at most; 0 in sync; absent if not known")
        progress = gauge("reintegration_progress_ratio", "Part of the reintegration under way that is done, 0 to 1")
        rate = gauge("reintegration_rate_bytes_per_second", "Rate of the reintegration under way, since it began")
        left = gauge("reintegration_remaining_seconds", "Time left of the reintegration under way, at this rate")
        held = gauge("held_requests", "Requests of the VM that wait for the peer or for a verdict")
        sent = CounterMetricFamily(
            "hotpair_module_mirror_sent_bytes",
            "Sent to the peer by the mirror process that runs now",
            labels=["module"],
        )
        for module, known, _, said in self._rows:
            names, mirror = [module.module], said.get("replication", {})
            bytes_behind = out_of_sync_bytes(module, known, said)
            if bytes_behind is not None:
                behind.add_metric(names, bytes_behind)
            filling = mirror.get("reintegration")
            if filling:
                total = filling["bytes_done"] + filling["bytes_left"]
                progress.add_metric(names, filling["bytes_done"] / total if total else 0.0)
                rate.add_metric(names, filling["rate"])
                left.add_metric(names, filling["seconds_left"])
            if "held" in mirror:
                held.add_metric(names, mirror["held"])
            if "sent_bytes" in mirror:
                sent.add_metric(names, mirror["sent_bytes"])
        yield from (behind, progress, rate, left, held, sent)

    def _pulses(self) -> Iterator[Metric]:
        def counter(name: str, what: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"hotpair_pulses_{name}", what, labels=["module", "network"])

        counters = {
            "sent": counter("sent", "Pulses sent to the peer"),
            "received": counter("received", "Pulses of the peer that were believed"),
            "lost": counter("lost", "Pulses of the peer that never came, by the gaps in their numbers"),
        }
        for module, _, _, said in self._rows:
            for network, traffic in said.get("heartbeat", {}).get("networks", {}).items():
                for name, family in counters.items():
                    family.add_metric([module.module, network], traffic[name])
        yield from counters.values()

    def _history(self) -> Iterator[Metric]:
        failovers = CounterMetricFamily(
            "hotpair_module_failovers",
            "Since the service started: the module came to this server because the peer was lost",
            labels=["module"],
        )
        handovers = CounterMetricFamily(
            "hotpair_module_handovers",
            "Since the service started: the module came to this server from a peer that was heard (swap, consent)",
            labels=["module"],
        )
        gap = GaugeMetricFamily(
            "hotpair_module_last_service_gap_seconds",
            "How long the VM had not run, as far as this server saw, before it came to run here last; the time until a "
            "peer's loss is noticed is not in it; absent before that has happened",
            labels=["module"],
        )
        for module, _, history, _ in self._rows:
            failovers.add_metric([module.module], history.failovers)
            handovers.add_metric([module.module], history.handovers)
            if history.last_gap_s is not None:
                gap.add_metric([module.module], history.last_gap_s)
        yield from (failovers, handovers, gap)
