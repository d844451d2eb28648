# Two configurations that do not say the same decide nothing; each server says so.
policy none
split_brain a server:a
split_brain b server:b
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
run 30                      | a ALONE vm reason=SPLIT_POLICIES_DIFFER, b ALONE vm reason=SPLIT_POLICIES_DIFFER
a: second
run 10                      | a not-vm, b vm
a: second
run 30                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
