# The newer copy is half copied: neither it nor the older one is run, whoever it was copied from must come back.
policy none
record a generation 1 in_sync role PRIM writes 0 log 0
record b generation 3 base 1 ancestors 1 inconsistent writes 1 log 1
run 20                      | a WAIT not-vm, b WAIT not-vm, a lacks 1, b lacks 0
