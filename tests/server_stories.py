"""What a pair of servers has to survive, as stories: each begins with everything green and at home, and may leave it
otherwise. Whoever tells them brings it home again.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from tests.pair_of_servers import BOOTED_S, DETECTED_S, SICK, Pair

Story = Callable[[Pair], None]
ACTORS = ("SupervisorActor", "HeartbeatActor", "ReplicationActor", "VmActor")


def same_processes(pair: Pair, before: dict[str, list[psutil.Process]]) -> None:
    """No application was started again meanwhile: psutil compares pid and start time."""
    assert pair.applications() == before
    assert all(len(processes) == 1 for processes in before.values()), before


# ---- power


def a_server_loses_its_power(pair: Pair) -> None:
    """The one with the guest. The other one, which has a module of its own, runs both."""
    before = pair.applications()
    pair.cut_power("b")
    acknowledged = pair.acknowledged()
    pair.until_all("a", "ALONE green", BOOTED_S)
    pair.until_all_write()
    pair.nothing_lost(acknowledged)
    assert pair.applications()["app"] == before["app"], "who runs here does not notice"
    pair.boot("b")
    pair.servers.until_green()
    pair.nothing_lost(acknowledged)


def both_servers_lose_their_power(pair: Pair) -> None:
    pair.until_all_write()
    for name in ("a", "b"):
        pair.cut_power(name)
    acknowledged = pair.acknowledged()
    for name in ("a", "b"):
        pair.boot(name)
    pair.servers.until_green()
    pair.nothing_lost(acknowledged)


# ---- networks


def a_network_of_pulses_only_is_cut(pair: Pair) -> None:
    """It is seen, and nothing is done."""
    before = pair.applications()
    pair.networks.cut("a", "direct")
    _until_seen(pair, "down")
    assert pair.servers.are_green()
    pair.until_all_write()
    pair.networks.heal("a", "direct")
    _until_seen(pair, "up")
    same_processes(pair, before)


def _until_seen(pair: Pair, status: str) -> None:
    def is_seen() -> bool:
        return all(pair.said(name, "app")["networks"]["direct"]["status"] == status for name in ("a", "b"))

    pair.until(is_seen, f"both see that the network is {status}")


def the_mirrors_network_is_cut(pair: Pair) -> None:
    """Pulses and the witness are there: each module goes on where it runs, and nothing is started again."""
    before = pair.applications()
    pair.networks.cut("a", "lan")
    for module, home in pair.homes.items():
        pair.until_state(module, home, "ALONE green")
        other = "b" if home == "a" else "a"
        assert not pair[other].state(module).endswith("green")
    pair.until_all_write()
    pair.networks.heal("a", "lan")
    pair.servers.until_green()
    same_processes(pair, before)


def the_servers_hear_the_witness_only(pair: Pair) -> None:
    """Each module goes on where it ran; the other server is refused, and says so."""
    before = pair.applications()
    pair.networks.cut("a", "lan", "direct")
    for module, home in pair.homes.items():
        other = "b" if home == "a" else "a"
        pair.until_state(module, home, "ALONE green")
        pair.until_state(module, other, "WAIT")
        pair.until_reason(module, other, "was granted to go on")
    pair.until_all_write()
    pair.networks.heal("a", "lan", "direct")
    pair.servers.until_green()
    same_processes(pair, before)


def a_server_is_cut_off(pair: Pair) -> None:
    """It hears nobody: what it ran is off before the other one starts it."""
    pair.until_all_write()
    own = [one for module, found in pair.applications().items() if pair.homes[module] == "a" for one in found]
    pair.networks.cut("a")
    pair.until(lambda: "ALONE" in pair["b"].state("app"), "b goes on")
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in own)
    acknowledged = pair.acknowledged()
    pair.until_all("b", "ALONE green")
    pair.until_all("a", "WAIT")
    for module in pair.homes:
        pair.until_reason(module, "a", "arbiter cannot be reached")
    pair.until_all_write()
    pair.nothing_lost(acknowledged)
    _off_before_started(pair)
    pair.networks.heal("a")
    pair.servers.until_green()
    pair.nothing_lost(acknowledged)


def _off_before_started(pair: Pair) -> None:
    """By both servers' event logs, on the one clock that they have here."""
    for module, home in pair.homes.items():
        if home != "a":
            continue
        ended = _last_vm_event(pair, "a", module, "off")
        started = _last_vm_event(pair, "b", module, "starting")
        assert ended < started, f"{module}: off at {ended}, started at {started}"


def _last_vm_event(pair: Pair, server: str, module: str, vm: str) -> float:
    """When the VM last came to be so. An entry of a changed state says nothing of the VM: the next one does."""
    with pair[server].client() as client:
        times = [entry["at"] for entry in client.events(module) if entry.get("vm") == vm]
    assert times, f"{module} on {server} was never {vm}"
    return float(times[-1])


def the_witness_is_gone_and_then_a_server(pair: Pair) -> None:
    """Nothing happens while both see each other. Then nobody may go on, and says why; until the witness is back."""
    witness = pair.servers.witness
    assert witness is not None
    before = pair.applications()
    witness.kill()
    pair.until_all_write()
    assert pair.servers.are_green()
    same_processes(pair, before)
    pair.cut_power("b")
    acknowledged = pair.acknowledged()
    pair.until_all("a", "WAIT")
    for module in pair.homes:
        pair.until_reason(module, "a", "arbiter cannot be reached")
    assert not any(pair.applications()[module] for module, home in pair.homes.items() if home == "a")
    witness.start()
    pair.until_all("a", "ALONE green", BOOTED_S)
    pair.nothing_lost(acknowledged)
    pair.boot("b")
    pair.servers.until_green()
    pair.nothing_lost(acknowledged)


# ---- what is not the host


def each_actor_is_killed(pair: Pair) -> None:
    """All of one kind on one server at a time: made again, and everything is taken on."""
    before = pair.applications()
    for actor in ACTORS:
        _kill_and_see_again(pair, f"ray::{actor}", 1 if actor == "SupervisorActor" else len(pair.homes))
        pair.servers.until_green()
        pair.until_all_write()
        same_processes(pair, before)


def _kill_and_see_again(pair: Pair, word: str, count: int) -> None:
    killed = pair["a"].find(word)
    assert len(killed) == count, killed
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, DETECTED_S)

    def is_back() -> bool:
        return len([one for one in pair["a"].find(word) if one not in killed]) == count

    pair.until(is_back, f"each {word} is there again")


def ray_is_killed(pair: Pair) -> None:
    """The GCS on one server, the raylet on the other; then everything of Ray on one, all at once."""
    before = pair.applications()
    for name, word in (("a", "gcs_server"), ("b", "raylet")):
        found = [one for one in pair[name].processes() if one.name() == word]
        assert len(found) == 1
        found[0].kill()
    _ended_and_back(pair, "a", "b")
    same_processes(pair, before)
    for process in pair["a"].find("ray::", "gcs_server", "raylet", "ray_start", "fork_server"):
        process.kill()
    _ended_and_back(pair, "a")
    same_processes(pair, before)


def _ended_and_back(pair: Pair, *names: str) -> None:
    pair.until(lambda: not any(pair[name].modules() for name in names), "the supervisors have ended")
    pair.until_all_write()
    for name in names:
        pair.servers.until_open(pair[name])
    pair.servers.until_green()


def a_mirror_is_killed(pair: Pair) -> None:
    """The source's, then the target's: the application keeps its disk."""
    before = pair.applications()
    for name in ("a", "b"):
        _kill_mirror(pair, name)
        pair.servers.until_green()
        pair.until_all_write()
        same_processes(pair, before)


def _kill_mirror(pair: Pair, server: str) -> None:
    killed = pair.mirror(server, "app")
    assert killed is not None
    killed.kill()
    psutil.wait_procs([killed], DETECTED_S)
    pair.until(lambda: pair.mirror(server, "app") is not None, "there is another one")


def a_vm_is_killed(pair: Pair) -> None:
    """It is started again where it ran, and goes on from what was acknowledged."""
    before = pair.applications()
    for module, (process,) in before.items():
        process.kill()
        process.wait(DETECTED_S)
        acknowledged = {module: pair.servers.acknowledged(module)}
        pair.servers.until_more(5, module)
        pair.servers.until_green()
        pair.nothing_lost(acknowledged)
        assert pair.applications()[module] != [process]


# ---- checkers


def a_checker_has_the_application_restarted(pair: Pair) -> None:
    """The check runs beside the VM's actor, the rules in the supervisor."""
    both_up = {"health": "up", "vm": "up"}
    pair.until(lambda: pair.findings("a", "app") == both_up, "both are up", BOOTED_S)
    assert pair.findings("b", "app") == {"health": "unknown", "vm": "unknown"}, "it does not run there"
    (before,) = pair.applications()["app"]
    acknowledged, sick = pair.acknowledged(), pair.servers.folder / SICK
    sick.touch()
    pair.until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE, "it is restarted", BOOTED_S)
    sick.unlink()
    pair.until_state("app", "a", "PRIM green", BOOTED_S)
    pair.until(lambda: pair.findings("a", "app") == both_up, "both are up again", BOOTED_S)
    pair.nothing_lost(acknowledged)
    with pair["a"].client() as client:
        texts = [entry["text"] for entry in client.events("app") if entry["kind"] == "checker"]
    assert any(text.startswith("restart: checker health has been down for") for text in texts), texts
