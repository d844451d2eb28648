# Found by simulation (fence, seed 3285): a server that was away comes back alone, and the operator declares its copy
# current, while the peer, which had gone on, is without power. Nobody remembers that: both go on, and both say so.
policy fence
run 20
fault b: power cut for 60
run 40                      | a ALONE vm, b down
fault a: power cut for 100
run 55                      | b WAIT not-vm reason=NOT_ASKED
b: prim
run 10                      | b ALONE green vm
run 60                      | a ALONE vm reason=SPLIT_BRAIN, b ALONE vm reason=SPLIT_BRAIN
b: second
run 10                      | b WAIT not-vm
b: second
run 40                      | a PRIM green vm, b SECOND green, copies equal
