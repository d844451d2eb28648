# No record on either: WAIT until the operator says which copy is current.
policy witness
record a none
record b none
run 10                      | a WAIT reason=NO_RECORD, b WAIT reason=NO_RECORD
b: prim
run 30                      | b PRIM green vm, a SECOND green
