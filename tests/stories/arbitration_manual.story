# Never: the operator decides.
policy manual
run 20
fault a: power cut for 60
run 20                      | a down, b WAIT not-vm
b: prim
run 12                      | b ALONE green vm
run 60                      | b PRIM green vm, a SECOND green, copies equal
