# Same generation, one outdated: the other is source.
policy none
record a generation 1 in_sync outdated role PRIM writes 0
record b generation 1 in_sync writes 0
run 30                      | b PRIM green vm, a SECOND green, copies equal
