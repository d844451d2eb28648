# Found by simulation (none, seed 1285): the copy that is left is outdated, and the peer comes with an empty disk. It is no
# source: its mirror refuses, and is not started again and again.
policy none
record a none
record b generation 1 role SECOND in_sync outdated
run 30                      | b WAIT not-vm outdated reason=OUTDATED, a WAIT no-record not-vm
b: prim
run 10                      | b WAIT not-vm outdated
b: prim --force
run 40                      | b PRIM green vm, a SECOND green, copies equal
