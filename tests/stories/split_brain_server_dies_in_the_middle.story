# The losing side's control plane dies when it has given up and its changes are saved, before it is copied to: it goes on there.
policy none
split_brain server:b
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
fault a: death between two effects, control plane after 2 for 5
run 60                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
