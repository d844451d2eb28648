# Same generation, one solo: it is source.
policy witness
record a generation 2 base 1 ancestors 1 in_sync role PRIM writes 0
record b generation 2 base 1 ancestors 1 role ALONE solo writes 0,1 log 1
run 30                      | b PRIM green vm, a SECOND green, a has 1, copies equal
