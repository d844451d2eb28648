# Same generation, equal otherwise: the higher term.
policy none
record a generation 1 in_sync role PRIM term 3 writes 0
record b generation 1 in_sync role PRIM term 4 writes 0
run 30                      | b PRIM green vm, a SECOND green
