# Mine is among the peer's ancestors: the peer is source, full comparison, whatever the logs say.
policy none
record a generation 1 in_sync role PRIM writes 0,5
record b generation 3 base 2 ancestors 2,1 role ALONE solo writes 0,1
run 30                      | b PRIM green vm, a SECOND green, a has 1, a lacks 5, copies equal
