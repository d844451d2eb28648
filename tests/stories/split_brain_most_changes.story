# The side that has changed more stays, whoever was the primary.
policy none
split_brain most-changes
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2,3,4,5,6,7,8,9 log 2,3,4,5,6,7,8,9
run 40                      | b PRIM green vm, a SECOND green, copies equal, a has 9, a lacks 1
