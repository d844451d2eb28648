# Found by exploration: the peer dies while it is asked to take over; granted, the VM starts again here.
policy fence
run 20
fault b: death between two effects, server after 1 for 30
a: swap
run 1
fault b: power cut for 30
run 20                      | b not-vm, a ALONE green vm
run 60                      | a PRIM green vm, b SECOND green
