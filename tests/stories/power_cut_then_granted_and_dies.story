# Found by simulation: SECOND loses its power, and with it what was never flushed, while PRIM's control plane is down and
# its mirror fences itself. SECOND is back first, is granted, and dies when that is durable. Two failures at the same
# time: what is then on PRIM's copy only is given up.
policy witness
run 20
fault a: control plane dies for 45
run 3
fault b: death between two effects, control plane after 1 for 25
fault b: power cut for 15
run 24                      | b solo epoch=2 not-ALONE, arbiter 2 b, a in_sync
run 70                      | b PRIM green vm, a SECOND green, copies equal
