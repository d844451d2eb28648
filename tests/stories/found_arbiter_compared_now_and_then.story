# Found by exploration: a pair whose epochs the arbiter has moved past agrees on them before it is green again.
policy witness
run 20
fault b: arbiter not reached for 20
fault arbiter slow for 6
fault link fails for 2
run 40                      | a PRIM green vm, b SECOND green
fault a: power cut for 30
run 12                      | b ALONE green vm
