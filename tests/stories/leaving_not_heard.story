# SECOND stops while PRIM does not hear that it leaves: it stops in sync. PRIM, back after a power cut, may lack what it
# has answered and waits for the better copy.
policy witness
run 30
fault a: mirror freezes for 30
b: stop
run 6                       | b STOP in_sync not-outdated not-vm
fault a: power cut for 5
run 20                      | a WAIT not-vm reason=PEER_STOPPED
b: start
run 30                      | b PRIM green vm, a SECOND green, copies equal, b has all
