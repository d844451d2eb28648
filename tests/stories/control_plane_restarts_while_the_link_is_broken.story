# Found by simulation: SECOND's control plane restarts while the mirror link is broken, and asks at once to go on alone.
# That it has heard nothing yet is not that it has heard nothing for timeout_s: it must listen first.
policy none
run 20                                          | a PRIM green, b SECOND green
fault pulses late, 3 for 10
fault link fails for 10
fault b: control plane dies for 3
run 8                                           | a ALONE vm, b WAIT not-vm, no split brain
run 20                                          | a PRIM green, b SECOND green, no split brain, copies equal
