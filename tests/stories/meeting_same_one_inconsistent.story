# Same generation, one inconsistent: the other is source.
policy witness
record a generation 2 base 1 ancestors 1 inconsistent writes 0
record b generation 2 base 1 ancestors 1 role ALONE solo writes 0,1,2 log 1,2
run 30                      | b PRIM green vm, a SECOND green, copies equal, a has 2
