# Both inconsistent: the operator's to decide.
policy witness
record a generation 2 inconsistent
record b generation 2 inconsistent
run 20                      | a WAIT reason=BOTH_INCONSISTENT, b WAIT reason=BOTH_INCONSISTENT, a not-vm, b not-vm
