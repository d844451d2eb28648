# Found by simulation (none, seed 1544): an operator forces one side while the other runs unheard. When they hear each
# other, both go on, and both say that the operator has to choose.
policy none
run 20
fault partition for 40
fault b: power cut for 10
run 30                      | a ALONE vm, b WAIT not-vm
b: prim --force
run 30                      | a ALONE vm reason=UNRELATED, b ALONE vm reason=UNRELATED
b: stop
run 10                      | b STOP not-vm
b: second --full
run 40                      | a PRIM green vm, b SECOND green, copies equal
