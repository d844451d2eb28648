# Always, when live: the death of PRIM's host costs seconds.
policy none
run 20
fault a: power cut for 30
run 12                      | a down, b ALONE green vm
run 60                      | b PRIM green vm, a SECOND green, copies equal
