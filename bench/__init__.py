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
every other one. All that is measured runs at a higher priority than the rest of the machine, is written back to the
disk between measurements, and is measured again when others used the processors nevertheless. What counts is the ratio
of medians; the spread, and what others used, stand beside them.

Truth: when the rounds are over, fio writes blocks with checksums through each system and reads them back, in jobs of
their own that are not timed; then the system is stopped, and its two copies are compared byte for byte. A difference is
an error, like a system that does not start. Exit code: 0 when all that was selected was measured and right, else 1;
targets that are not reached are shown and are not errors.

Everything runs in its own mount, process, network and IPC namespaces: when the run ends, in whatever way, nothing
stays but its work directory, and that is removed.
"""
