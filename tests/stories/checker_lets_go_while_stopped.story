# Found by simulation: a checker that let the module go while it was stopped was not heard; after the next start it was
# held in WAIT for ever.
policy witness
run 20
fault b: checker, wait for 30
run 1
b: stop
run 40                      | b STOP outdated, a ALONE green vm
b: start
run 30                      | a PRIM green vm, b SECOND green, copies equal
