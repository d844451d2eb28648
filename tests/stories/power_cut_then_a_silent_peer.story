# Found by simulation, and a price to know: PRIM's host loses its power, and with it what was acknowledged but never
# flushed; its peer, which has that, is frozen when it comes back. The arbiter grants it: two failures, not one.
policy witness
run 40
fault a: power cut for 12
fault b: server freezes for 60
run 30                      | a ALONE green vm epoch=2, arbiter 2 a
run 70                      | a PRIM green vm, b SECOND green, copies equal
