# Live when the link broke: the peer is made sure to be off, then SECOND goes on.
policy fence
run 20
fault arbiter slow, 2 for 30
fault a: server freezes for 25
run 9                       | a down
run 6                       | b ALONE green vm
run 90                      | b PRIM green vm, a SECOND green, copies equal
