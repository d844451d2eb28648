# Granted, in sync again, and apart again: copies of the first grant come while another claim is waited for.
policy witness
run 20
fault answers repeated for 4
fault link fails for 2
run 12                      | a PRIM green vm, b SECOND green, arbiter 3 a
fault a: arbiter does not hear for 60
fault partition for 60
run 40                      | a WAIT not-vm, b ALONE green vm epoch=4, arbiter 4 b
run 60                      | b PRIM green vm, a SECOND green, copies equal, no split brain
