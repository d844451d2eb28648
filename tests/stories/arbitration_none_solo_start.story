# Solo without an arbiter that keeps epochs: at once.
policy none
record a generation 2 base 1 ancestors 1 role ALONE solo writes 0 log 0
record b generation 1 in_sync
down b 60
run 12                      | a ALONE green vm
