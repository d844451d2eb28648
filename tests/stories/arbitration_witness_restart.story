# In sync, restarted, the peer away: the epoch is moved on, then it starts.
policy witness
record a generation 1 in_sync role PRIM writes 0
record b generation 1 in_sync writes 0
down b 60
run 20                      | a ALONE green vm epoch=1, arbiter 1 a
run 80                      | a PRIM green, b SECOND green epoch=2
