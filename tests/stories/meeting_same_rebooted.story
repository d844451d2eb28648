# Same generation: a server that did not reboot goes before one that did, whoever was primary.
policy none
record a generation 1 in_sync role PRIM term 3 rebooted writes 0
record b generation 1 in_sync term 3 writes 0,1 log 1
run 30                      | b PRIM green vm, a SECOND green, a has 1, copies equal
