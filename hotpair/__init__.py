"""hotpair: high availability for virtual machines on two servers, without shared disk."""

__version__ = "0.1.0"
