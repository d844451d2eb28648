# Found by exploration: going alone by consent in WAIT; ALONE was entered and nothing ever started the VM.
policy manual
run 20
b: stop
run 15                      | b STOP outdated, a ALONE green vm
a: stop
run 15                      | a STOP not-vm
a: start
run 15                      | a ALONE green vm
