"""How virtual machines are driven: the driver interface and the drivers."""
