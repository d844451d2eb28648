# The servers lose each other again while the losing side is giving up.
policy none
split_brain former-primary
run 20
fault partition for 20
run 20.7                    | split brain
fault partition for 15
run 70                      | a PRIM green vm, b SECOND green, copies equal
