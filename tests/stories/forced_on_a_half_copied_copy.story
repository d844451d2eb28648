# The last copy is half copied, and its source seems gone: the operator runs it. When the source comes back after all,
# nothing is copied over it, though the half copied one had its generation.
policy none
record a generation 1 in_sync role PRIM writes 0 log 0
record b generation 1 role SECOND inconsistent
down a 60
run 20                      | b WAIT not-vm inconsistent
b: prim
run 5                       | b WAIT not-vm inconsistent
b: prim --force
run 10                      | b ALONE green vm
run 60                      | b ALONE vm reason=UNRELATED, a WAIT not-vm reason=UNRELATED
