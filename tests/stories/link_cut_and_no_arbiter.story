# The mirror link is cut, pulses are alive, nobody can be asked: PRIM holds its writes and fences itself. Then both wait,
# and hear each other: the arbiter that comes back is not asked, only the link ends it.
policy witness
run 20                      | a PRIM green vm, b SECOND green
fault arbiter down for 30
fault link fails for 90
run 1.9                     | a PRIM vm not-green, b SECOND not-green
run 10                      | a WAIT not-vm, b WAIT not-vm, a in_sync, b in_sync, arbiter 1 a
run 60                      | a WAIT not-vm, b WAIT not-vm, arbiter 1 a
run 40                      | a PRIM green vm, b SECOND green, copies equal
