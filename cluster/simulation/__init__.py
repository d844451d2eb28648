"""A model of everything around two module state machines, to explore and to simulate them. No IO, no clock."""
