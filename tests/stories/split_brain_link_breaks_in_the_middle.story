# The link breaks while the roles are taken after the losing side has given up: it stays given up, and is copied to later.
policy none
split_brain server:b
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
fault link fails in the middle, 2 for 15
run 12                      | b vm, a not-vm inconsistent
run 50                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
