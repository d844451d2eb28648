# The same, and the operator does not wait for the link. Without --force that needs the arbiter.
policy witness
run 20
fault arbiter down for 30
fault link fails for 90
run 12                      | a WAIT not-vm, b WAIT not-vm
a: prim
run 3                       | a WAIT not-vm
run 25
a: prim
run 8                       | a ALONE green vm, b WAIT not-vm outdated, arbiter 2 a
run 90                      | a PRIM green vm, b SECOND green, copies equal
