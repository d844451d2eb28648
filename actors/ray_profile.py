"""How hotpair runs Ray: each setting as data, with its reason. Pure.

One runtime for each server, spoken to over loopback, with a token. Its services listen on every address all the same:
the token refuses others, and `hotpair firewall` keeps them away. Nothing in it knows the other server. Found and
checked with Ray 2.60: Ray's configuration names are its own, so what they do is looked at again with each new version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OBJECT_STORE_BYTES = 80 << 20  # Ray demands 75 MiB; nothing of hotpair goes through it
FIRST_PORT = 21000  # where nothing else is chosen
PORTS = 60  # from the first one: services of the runtime, then workers
WORKERS_AT_A_TIME = 8  # processes that start together: three for each of 25 modules would else take a minute


@dataclass(frozen=True)
class Entry:
    """One setting of the runtime."""

    name: str
    value: str
    why: str


def environment(token_path: str) -> tuple[Entry, ...]:
    """For the process that starts Ray, and for each that connects to it."""
    return (
        Entry("RAY_AUTH_MODE", "token", "whoever reaches a port of Ray can run code: a local user, too"),
        Entry("RAY_AUTH_TOKEN_PATH", token_path, "of this server's service alone, readable by its owner only"),
        Entry("RAY_USAGE_STATS_ENABLED", "0", "a control system does not phone home"),
        Entry("RAY_memory_monitor_refresh_ms", "0", "a hypervisor's memory is full by design: else actors are killed"),
        Entry("RAY_worker_niceness", "0", "else a busy guest keeps the pulses waiting"),
        Entry("RAY_worker_oom_score_adjustment", "0", "else the kernel ends the one who keeps the VM safe first"),
        Entry("RAY_kill_child_processes_on_worker_exit", "0", "mirrors and VMs outlive actors"),
        Entry("RAY_process_group_cleanup_enabled", "0", "mirrors and VMs outlive actors"),
        Entry("RAY_prestart_worker_first_driver", "0", "a start could hang for ever on workers that come too late"),
        Entry("RAY_raylet_start_wait_time_s", "80", "a host that has just booted is busy"),
        Entry("RAY_worker_maximum_startup_concurrency", str(WORKERS_AT_A_TIME), "all modules' actors in seconds"),
        Entry("RAY_task_events_report_interval_ms", "0", "nobody reads them; memory"),
        Entry("RAY_enable_timeline", "0", "nobody reads it; memory"),
        Entry("RAY_enable_metrics_collection", "0", "hotpair has metrics of its own"),
        Entry("RAY_worker_num_grpc_internal_threads", "1", "threads times 75 actors"),
        Entry("RAY_gcs_rpc_server_reconnect_timeout_s", "60", "a GCS that is back within a minute finds its actors"),
        Entry("OMP_NUM_THREADS", "1", "nothing computes in parallel here; a start without it is slower"),
    )


@dataclass(frozen=True)
class Ports:
    """Every port that Ray listens on, so that a firewall can keep them in, and two servers can share one machine."""

    first: int

    @property
    def gcs(self) -> int:
        return self.first

    def arguments(self) -> list[str]:
        named = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port")
        later = ("dashboard-agent-listen-port", "metrics-export-port", "dashboard-port")
        services = [f"--{name}={self.first + i}" for i, name in enumerate((*named, *later), start=1)]
        workers = self.first + len(services) + 1
        return [
            f"--port={self.gcs}", *services, f"--min-worker-port={workers}", f"--max-worker-port={self.last}",
        ]  # fmt: skip

    @property
    def last(self) -> int:
        return self.first + PORTS + 3 * 25 * 2  # each worker takes one; those that end may hold theirs for a moment


def start_arguments(ports: Ports, folder: str, processors: int) -> list[str]:
    """Of `ray start`. `folder`: Ray makes sockets far below it, whose paths have to fit into 107 bytes."""
    return [
        "start", "--head", "--block",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={processors}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--no-monitor",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
        *ports.arguments(),
    ]  # fmt: skip


# For each actor. `max_restarts` -1: always again; a method is never run twice by Ray itself, since what it does is not
# a value but something done.
ACTOR_OPTIONS: Mapping[str, object] = {
    "num_cpus": 0,
    "lifetime": "detached",
    "namespace": "hotpair",
    "max_restarts": -1,
    "max_task_retries": 0,
}
