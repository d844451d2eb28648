# VM off, both copies flushed, handed over; and back.
policy witness
run 20
a: swap
run 30                      | b PRIM green vm, a SECOND green not-vm
b: swap
run 30                      | a PRIM green vm, b SECOND green, copies equal
