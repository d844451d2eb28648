# SECOND's server dies and the command needs 20 s to be sure of it: PRIM holds its writes, and its VM is never stopped.
policy fence
run 20                      | a PRIM green vm, b SECOND green
fault arbiter slow, 20 for 60
fault b: power cut for 100
run 6                       | a PRIM vm not-green
run 12                      | a PRIM vm not-green, b down
run 6                       | a ALONE green vm, b down, a never-stopped
run 100                     | a PRIM green vm, b SECOND green, a never-stopped, copies equal
