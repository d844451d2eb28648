# Who was the primary in the common base keeps its changes; the other stops its VM, gives up, and is copied to.
policy none
split_brain former-primary
run 20                      | a PRIM green vm, b SECOND green
fault partition for 20
run 18                      | a ALONE vm, b ALONE vm, split brain
run 60                      | a PRIM green vm, b SECOND green, copies equal
