# Found by simulation: the old primary hears the new one's generation in a pulse before its own mirror has reported that
# it is being copied to. It must not take that for a peer that has gone on without it: they meet
# once for each new primary.
policy witness
run 20
a: swap
run 20                      | b PRIM green vm, a SECOND green, connections 1
b: swap
run 20                      | a PRIM green vm, b SECOND green, connections 2
a: swap
run 20                      | b PRIM green vm, a SECOND green, connections 3, copies equal
