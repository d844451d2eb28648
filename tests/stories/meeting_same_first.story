# Equal in everything: the first server.
policy none
record a generation 1 in_sync writes 0
record b generation 1 in_sync writes 0
run 30                      | a PRIM green vm, b SECOND green
