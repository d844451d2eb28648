# Both solo from the same base, one inconsistent: decided before, the union of the logs is copied.
policy manual
record a generation 3 base 1 ancestors 1 role ALONE solo inconsistent writes 0,1 log 1
record b generation 2 base 1 ancestors 1 role ALONE solo writes 0,2 log 2
run 30                      | b PRIM green vm, a SECOND green, a lacks 1, a has 2, copies equal
