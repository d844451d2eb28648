"""What processes and the machine used, from /proc: processor time and memory."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

NICE = -10
HEADERS_BYTES = 14 + 20 + 32  # of one packet, TCP with time stamps
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Resident and proportional memory of one process, in bytes."""

    rss_bytes: int
    pss_bytes: int


def processor_s(pids: Iterable[int]) -> float:
    """User and system time that these processes have used so far, in seconds; one that has ended counts 0."""
    return sum(_process_ticks(pid) for pid in pids) / _TICKS_PER_S


def machine_busy_s() -> float:
    """Time that all processors were busy or taken away by the hypervisor since boot, in seconds."""
    with open("/proc/stat", encoding="ascii") as table:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, table.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def memory(pid: int) -> Memory:
    """Raises OSError when the process has ended."""
    values = {"Rss": 0, "Pss": 0}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as table:
        for line in table:
            key, _, rest = line.partition(":")
            if key in values:
                values[key] = int(rest.split()[0]) << 10
    return Memory(values["Rss"], values["Pss"])


def read_bytes(pid: int) -> int:
    """Bytes that a process has read through read-like system calls, from whatever file."""
    with open(f"/proc/{pid}/io", encoding="ascii") as table:
        return int(table.readline().split()[1])


def loopback_bytes() -> int:
    """Bytes that went over loopback in this network namespace, without the headers of Ethernet, IP and TCP."""
    with open("/proc/self/net/dev", encoding="ascii") as table:
        for line in table:
            name, _, numbers = line.partition(":")
            if name.strip() == "lo":
                fields = numbers.split()
                return int(fields[0]) - HEADERS_BYTES * int(fields[1])
    raise OSError("no loopback interface")


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except FileNotFoundError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as table:
                    found += map(int, table.read().split())
            except FileNotFoundError:
                continue
    return found


def _process_ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as table:
            fields = table.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def prefer(pids: Iterable[int]) -> None:
    """Give these processes nearly all of the processors when others want them too; all systems get the same.

    Where the kernel groups tasks by session (sched_autogroup), a process's own nice value counts only within its group.
    """
    for pid in pids:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, NICE)
            with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as group:
                group.write(str(NICE))
        except (FileNotFoundError, ProcessLookupError):  # it has ended, or the kernel has no such groups
            continue
