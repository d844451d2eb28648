"""The benchmark: hotpair against other ways to write one virtual machine's disk twice, in one run.

    python -m bench [--json FILE] [--quick] [--only SYSTEM/WORKLOAD]... [--seconds N] [--rounds N] [--dir DIR]

Run from the repository's root as root; `hotpair` must be importable for its own systems. What is compared:

- `hotpair`, `hotpair-tls`: source and target on loopback, in the foreground, without and with TLS.
- `gluster`: a GlusterFS replica-2 volume of two servers in two network namespaces, with the options of its
  group "virt" (what a store of virtual machines uses), and `network.remote-dio` on, so that its bricks write to
  the page cache as everybody else here does; write-behind keeps respecting O_DIRECT, so that it stays synchronous.
- `qemu`: QEMU's blockdev-mirror with copy-mode=write-blocking to an NBD server on loopback, page cache below,
  driven through an NBD export by fio's nbd engine (why not through FUSE: systems/qemu.py).
- `c-loop`: the mirror's hot loop in C (c_loop.c): what Python costs.
- `plain`: the file system below, through the page cache (direct=0): what lies below all the others.

Noise: every workload is measured on one system after the other, again in each round and in the opposite order in
every other one; a measurement that something else on the machine disturbed is repeated. What counts is the
ratio of medians.

Everything runs in its own mount, process, network and IPC namespaces: when the run ends, in whatever way, nothing
stays but its work directory, and that is removed.
"""
