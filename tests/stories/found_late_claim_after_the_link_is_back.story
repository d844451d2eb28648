# Found by simulation (witness, seed 35188): PRIM asks to go alone, is not answered in time, meets its peer again; the
# claim is taken by the arbiter only then. The pair has moved the epoch on by itself, so that it is too late.
policy witness
run 20
fault arbiter slow for 30
fault link fails for 2
run 40                      | a PRIM green vm, b SECOND green
fault a: power cut for 60
run 12                      | b ALONE green vm
