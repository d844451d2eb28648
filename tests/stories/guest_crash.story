# The VM alone dies: started again where it was.
policy witness
run 20
fault a: vm dies
run 10                      | a PRIM green vm, b SECOND green, arbiter 1 a
