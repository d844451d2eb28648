# Live when the link broke: the peer is made sure to be off, then SECOND goes on.
policy fence
run 20
fault a: server freezes for 25
run 15                      | a down, b ALONE green vm
run 90                      | b PRIM green vm, a SECOND green, copies equal
