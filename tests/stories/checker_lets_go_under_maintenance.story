# Found by simulation: a checker that let the module go under maintenance was not heard; when maintenance was lifted it was
# still held, by nobody.
policy witness
run 10
b: stop
run 20                          | b STOP outdated, a ALONE green vm
fault a: checker, wait for 30
run 15                          | a WAIT not-vm reason=CHECKER
a: maintenance on
run 60
a: maintenance off
run 30                          | a ALONE green vm
