"""What the pair decides. Pure code, with the input and output in ``*_io`` modules beside it."""
