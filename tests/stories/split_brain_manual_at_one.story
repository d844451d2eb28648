# A policy at one server only is none.
policy none
split_brain a former-primary
record a generation 3 base 1 ancestors 1 term 4 role ALONE solo writes 0,1 log 1
record b generation 2 base 1 ancestors 1 term 5 role ALONE solo writes 0,2 log 2
run 30                      | a ALONE vm reason=SPLIT_POLICIES_DIFFER, b ALONE vm, a lacks 2, b lacks 1
