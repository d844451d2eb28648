# After a restart never: the peer may have gone on.
policy none
record a generation 1 in_sync role PRIM writes 0
record b generation 1 in_sync writes 0
down b 60
run 30                      | a WAIT not-vm reason=NOT_ASKED
run 60                      | a PRIM green vm, b SECOND green
