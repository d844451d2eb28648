# Nobody can be asked: the peer's death stops the service, and a lost link alone only holds it up.
policy witness
run 20
fault arbiter down for 60
fault link fails for 0.7
run 15                      | a vm not-ALONE, b not-vm
fault a: power cut for 20
run 12                      | a down, b WAIT not-vm
run 80                      | b has all, copies equal
