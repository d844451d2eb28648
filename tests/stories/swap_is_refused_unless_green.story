# Only SECOND in sync takes over.
policy witness
start apart
a: swap
run 0.01                    | a ALONE vm
run 30                      | a PRIM green vm, b SECOND green
