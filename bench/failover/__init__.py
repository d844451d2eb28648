"""The benchmark of two servers: how fast they fail over, and what they cost while nothing happens.

    python -m bench.failover [--json FILE] [--quick] [--only NAME]... [--runs N] [--modules N,N,...] [--seconds N]

Run from the repository's root as root. Two real servers (`hotpair run`, each with its own Ray runtime) on two loopback
addresses, with modules of the driver `command`, whose start script writes down the time as its first act; all times are
of the one clock of this one machine. What is measured:

- `failover`: kill -9 of everything that the primary runs, at once, until the start command runs on the other server,
  with the default time limits. The servers take turns: what was cut comes back, and is the next one's peer.
- `failover-1s`: the same with `timeout_s = 1`. Only arbitration by `fence` accepts that: with any other kind the
  primary must have stopped its VM before the peer may start it, and a broken link alone may take a second to be
  noticed. The fencing command here says that the peer is off when the benchmark has cut it.
- `swap`: from the end of the application on one server until its start command runs on the other.
- `freeze`: kill -9 of everything that the secondary runs: the longest gap between two acknowledged fsyncs of a writer
  on the primary, less the usual one. The kernel of a killed process says that its connections have ended.
- `freeze-silent`: the same, but first everything between the two mirrors is dropped, as when the power is cut: nobody
  says anything, and the silence has to be noticed (`silence_timeout_s`, and how often it is looked).
- `idle`: so many modules started on both servers: how long until all are green, the memory (PSS) and the processor time
  of each kind of process while nothing happens, and whether any pulse was lost.

A target is reached when the slowest run is within it. Exit code: 0 when all that was selected was measured, else 1;
targets that are not reached are shown and are not errors.

Everything runs in its own mount, process, network and IPC namespaces, as with the other benchmark: when the run ends,
in whatever way, nothing stays but its work directory, and that is removed.
"""
