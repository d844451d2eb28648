"""How bytes are mirrored: the tap, the stream, the dirty log, reintegration, the mirror process."""
