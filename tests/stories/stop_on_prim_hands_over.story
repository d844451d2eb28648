# The same handover, then STOP: the peer goes on as ALONE.
policy witness
run 20
a: stop
run 30                      | a STOP outdated, b ALONE green vm
a: start
run 30                      | b PRIM green vm, a SECOND green
