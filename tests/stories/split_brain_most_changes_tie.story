# As much on either side, and neither may run: the operator chooses.
policy witness
split_brain most-changes
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
arbiter 5 b
run 30                      | a WAIT not-vm reason=SPLIT_TIE, b WAIT not-vm reason=SPLIT_TIE, a lacks 2, b lacks 1
a: second
run 40                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
