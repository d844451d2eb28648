# The named server's changes stay, whatever else there is to say.
policy none
split_brain server:b
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1,3,4,5,6,7 log 1,3,4,5,6,7
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
run 40                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
