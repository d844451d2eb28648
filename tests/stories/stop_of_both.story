# SECOND is stopped first; PRIM says that it is solo before it stops as the last one, and starts alone.
policy witness
run 20
b: stop
run 15                      | b STOP outdated, a ALONE green vm solo
a: stop
run 15                      | a STOP not-vm solo
b: start
run 20                      | b WAIT not-vm
a: start
run 40                      | a PRIM green vm, b SECOND green
