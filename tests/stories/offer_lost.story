# The offer of sync is lost with the link: the source goes on alone again, and what the target lacks is in the logs.
policy witness
run 20
fault link fails for 2
run 1.9
fault link fails in the middle, 3 for 6
run 4                       | b not-green
run 30                      | a PRIM green vm, b SECOND green, copies equal
