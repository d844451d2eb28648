# Contract of the mirror: the copy is recorded inconsistent and the peer takes over.
policy witness
run 20
fault a: disk errors for 30
run 25                      | b ALONE green vm, a not-vm inconsistent
run 60                      | b PRIM green vm, a SECOND green, copies equal
