# Found by exploration: stopstart in ALONE; the mirror that had ended was started again, for ever.
policy none
run 20
fault b: power cut for 60
run 12                      | a ALONE vm
a: stopstart
run 25                      | a ALONE green vm
a: stop
run 12                      | a STOP not-vm
