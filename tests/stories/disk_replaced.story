# A server comes back with an empty disk: it is copied to in full.
policy witness
run 20
fault b: disk replaced for 10
run 5                       | a ALONE green vm, b no-record
run 40                      | a PRIM green vm, b SECOND green, copies equal
