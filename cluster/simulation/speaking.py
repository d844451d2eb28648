"""The pulses that a control plane sends, over both networks."""

from __future__ import annotations

from hotpair.cluster.simulation.life import Life
from hotpair.cluster.simulation.pulses import NETWORKS, PULSE_S, Ear


def begin_ear(life: Life, s: int) -> None:
    life.incarnations += 1
    life.ears[s] = Ear(s, life.incarnations, life.local(s))
    life.beats[s] = life.now + life.random.uniform(0.0, PULSE_S)


def send_pulse(life: Life, s: int) -> None:
    ear, module = life.ears[s], life.world.servers[s].module
    if ear is None or module is None:
        return
    ear.counter += 1
    said = life.view(s, module)
    for network in range(len(NETWORKS)):
        if not life.paths.gets_through(network, s):
            continue
        if any(life.random.random() < loss for loss in life.paths.losses):
            continue
        datagram = ear.says(network, said)
        late = max(life.paths.delays, default=0.0)
        times = 2 if late and life.random.random() < 0.3 else 1
        for _ in range(times):
            life.soon(0.0001, late or 0.002, "datagram", 1 - s, datagram)
