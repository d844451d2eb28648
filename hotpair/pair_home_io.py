"""`hotpair init`: the first server's home, with the pair's key and its own certificate authority.

The authority's key lies on both servers in the end: they are equals, and either of them may have to be replaced.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from hotpair.actors.home import Home
from hotpair.certificates_io import make_authority, make_certificate
from hotpair.cluster.configuration import parse_cluster
from hotpair.cluster.configuration_files import CLUSTER_FILE
from hotpair.cluster.configuration_io import BadKey, load_key
from hotpair.cluster.pulse import KEY_BYTES
from hotpair.home_files_io import SERVICE_FILE, NotMade, make_home
from hotpair.pair_init import WITNESS_AUTHORITY, Options, Pair, pair_of
from hotpair.toml_text import table_text

PAIR_KEY = "pair.key"
WITNESS_KEY = "witness.key"
AUTHORITY, AUTHORITY_KEY = "tls/authority.pem", "tls/authority.key"
CERTIFICATE, CERTIFICATE_KEY = "tls/server.pem", "tls/server.key"
FOR_WITNESS = "for-the-witness"  # a folder with what is to be copied there


@dataclass(frozen=True)
class WitnessFiles:
    """Of a witness that is there already. Paths; None: made here, for a witness that is new."""

    key: str | None = None
    authority: str | None = None


def init(home: Home, options: Options, witness: WitnessFiles) -> tuple[Pair, list[str]]:
    """The pair, and what else is to be done, line by line. Raises NotMade, NotUnderstood, ConfigurationError."""
    pair = pair_of(options)
    parse_cluster(pair.text)  # names and addresses that are right: certificates are made for them
    authority = make_authority(pair.name)
    own = make_certificate(authority, pair.here.name, pair.here.address)
    files = {
        CLUSTER_FILE: pair.text,
        PAIR_KEY: secrets.token_hex(KEY_BYTES) + "\n",
        AUTHORITY: authority.text,
        AUTHORITY_KEY: authority.key,
        CERTIFICATE: own.text,
        CERTIFICATE_KEY: own.key,
        SERVICE_FILE: service_text(pair.here.name),
    }
    to_do: list[str] = []
    if options.arbitration == "witness":
        key = _witness_key(witness.key)
        files[WITNESS_KEY] = key + "\n"
        if witness.authority is not None:
            files[WITNESS_AUTHORITY] = _read(witness.authority)
        if witness.key is None:
            files[f"{FOR_WITNESS}/witness-keys.toml"] = table_text({pair.name: key})
        if options.witness_tls and witness.authority is None:
            host = options.witness.rpartition(":")[0].strip("[]")
            made = make_certificate(authority, host, host)
            files |= {f"{FOR_WITNESS}/witness.pem": made.text, f"{FOR_WITNESS}/witness.key": made.key}
            files[f"{FOR_WITNESS}/authority.pem"] = authority.text
        if any(name.startswith(FOR_WITNESS) for name in files):
            to_do = [f"copy {home.below(FOR_WITNESS)} to the witness, start it with these files, and remove them here"]
    make_home(home, files)
    return pair, to_do


def service_text(server: str) -> str:
    """For the systemd unit."""
    return f"SERVER={server}\n"


def _witness_key(path: str | None) -> str:
    if path is None:
        return secrets.token_hex(KEY_BYTES)
    try:
        return load_key(path).hex()
    except BadKey as error:
        raise NotMade(str(error)) from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as opened:
            return opened.read()
    except (OSError, ValueError) as error:
        raise NotMade(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
