# A partition: one of them is granted to go on, the other waits, and both end in sync.
policy witness
run 20
fault b: arbiter not reached for 60
fault partition for 40
run 20                      | a ALONE green vm, b WAIT not-vm reason=ARBITER_UNREACHABLE, arbiter 2 a
run 60                      | a PRIM green, b SECOND green, copies equal, no split brain
