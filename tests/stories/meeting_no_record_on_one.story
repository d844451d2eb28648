# No record on one: the other is source, full comparison.
policy none
record a none
record b generation 1 role ALONE solo writes 0,1
run 30                      | b PRIM green vm, a SECOND green, a has 0, a has 1, copies equal
