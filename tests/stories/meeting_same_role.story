# Same generation and term: who ran the VM last.
policy none
record a generation 1 in_sync writes 0
record b generation 1 in_sync role PRIM writes 0
run 30                      | b PRIM green vm, a SECOND green
