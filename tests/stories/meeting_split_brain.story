# Both solo from the same base: split brain, and nothing is copied before a side is chosen.
policy none
record a generation 3 base 1 ancestors 1 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 role ALONE solo writes 0,2 log 2
run 20                      | a has 1, a lacks 2, b has 2, b lacks 1, a not-SECOND, b not-SECOND
b: second                   # refused while the VM runs here: it is stopped, the command is to be repeated
run 10                      | b not-vm
b: second
run 30                      | a PRIM green vm, b SECOND green, b has 1, b lacks 2, copies equal
