# A solo server that restarts has the epoch moved on first; refused means WAIT.
policy witness
record a generation 2 base 1 ancestors 1 epoch 1 role ALONE solo writes 0 log 0
record b generation 1 in_sync
arbiter 2 b
down b 60
run 30                      | a WAIT not-vm reason=ARBITER_REFUSED, arbiter 2 b
a: prim                     # refused as well: the arbiter names the peer
run 10                      | a WAIT not-vm, arbiter 2 b
