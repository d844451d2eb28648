# Mine is the peer's base: the peer is source, union of the logs.
policy none
record a generation 1 in_sync role PRIM writes 0,5 log 5
record b generation 2 base 1 ancestors 1 role ALONE solo writes 0,1 log 1
run 30                      | b PRIM green vm, a SECOND green, a has 1, a lacks 5, copies equal
