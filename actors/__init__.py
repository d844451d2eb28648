"""The distributed actor system: the only package that imports ray."""
