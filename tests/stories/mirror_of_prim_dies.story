# The mirror is started again and meets its target: no failover.
policy witness
run 20
fault a: mirror dies
run 20                      | a PRIM green vm, b SECOND green, copies equal
