# The lower term is that of the former primary: going on alone without having been it raises the term.
policy none
split_brain former-primary
record a generation 3 base 1 ancestors 1 term 5 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 4 role ALONE solo writes 0,2 log 2
run 40                      | b PRIM green vm, a SECOND green, copies equal, a has 2, a lacks 1
