# The same with a peer that lives: it has every acknowledged write, and takes over.
policy witness
run 40
fault a: power cut for 12
run 10                      | b ALONE green vm, b has all
run 30                      | b PRIM green vm, a SECOND green, copies equal, a has all
