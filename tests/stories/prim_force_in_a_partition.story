# The operator was wrong about the peer: both run, and it is known as an override; the next synchronisation is full.
policy witness
run 20
fault partition for 40
run 12                      | a ALONE vm, b WAIT not-vm
b: prim --force
run 10                      | a vm, b ALONE vm
run 40                      | a not-SECOND, b not-SECOND
