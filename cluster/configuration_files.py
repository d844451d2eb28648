"""What the configuration's files are called, below the home directory."""

from __future__ import annotations

CLUSTER_FILE = "cluster.toml"
MODULES_DIRECTORY = "modules"
SUFFIX = ".toml"
