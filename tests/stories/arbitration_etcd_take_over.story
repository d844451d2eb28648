# PRIM's host dies: SECOND has the epoch moved and takes over; PRIM comes back as its target.
policy etcd
run 20                      | a PRIM green, b SECOND green
fault a: power cut for 30
run 12                      | a down, b ALONE green vm epoch=2, arbiter 2 b
run 60                      | b PRIM green vm, a SECOND green epoch=3, copies equal
