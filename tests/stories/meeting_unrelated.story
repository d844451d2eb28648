# Neither descends from the other: nothing is copied until the operator chooses.
policy manual
record a generation 7 in_sync role PRIM writes 0
record b generation 8 in_sync writes 1
run 20                      | a WAIT reason=UNRELATED, b WAIT reason=UNRELATED, a lacks 1, b lacks 0
a: second --full
run 5
b: prim
run 40                      | b PRIM green vm, a SECOND green, a has 1, a lacks 0, copies equal
