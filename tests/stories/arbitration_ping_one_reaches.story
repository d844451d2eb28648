# Who does not reach the address waits.
policy ping
run 20
fault a: arbiter not reached for 40
fault a: one way, -1 for 30
run 20                      | a not-vm, b ALONE vm, no split brain
run 60                      | b PRIM green vm, a SECOND green, copies equal
