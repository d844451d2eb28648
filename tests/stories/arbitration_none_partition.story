# A partition splits: detected from the records, red, and ended by the operator.
policy none
run 20
fault partition for 20
run 18                      | a ALONE vm, b ALONE vm, split brain
run 15                      | a reason=SPLIT_BRAIN
b: second
run 10
b: second
run 30                      | a PRIM green vm, b SECOND green, copies equal
