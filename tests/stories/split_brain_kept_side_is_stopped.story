# Nothing is given up for a server that would not go on with what is kept; when it is started, it is.
policy none
split_brain server:b
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo stopped writes 0,2 log 2
run 30                      | a ALONE vm reason=SPLIT_STOPPED, a has 1, b STOP
b: start
run 40                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
