# Equal terms say nothing about who was the primary: the operator chooses.
policy none
split_brain former-primary
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 4 role ALONE solo writes 0,2 log 2
run 30                      | a ALONE vm reason=SPLIT_TIE, b ALONE vm reason=SPLIT_TIE, a lacks 2, b lacks 1
b: second
run 10                      | b not-vm
b: second
run 30                      | a PRIM green vm, b SECOND green, copies equal, b has 1, b lacks 2
