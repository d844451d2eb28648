# A server that was suspended asks before it releases anything, and goes on when its peer speaks.
policy witness
run 20
fault a: clock jumps, 8
run 15                      | a PRIM green vm, b SECOND green, arbiter 1 a, no gap
