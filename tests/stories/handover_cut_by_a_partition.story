# The question of a handover is on its way when everything between the two breaks: only who is granted goes on.
policy witness
run 20
fault partition in the middle, 1 for 30
a: swap
run 30                      | a ALONE green vm, b WAIT not-vm, arbiter 2 a, no split brain
run 60                      | a PRIM green vm, b SECOND green, copies equal
