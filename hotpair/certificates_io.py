"""The pair's own certificate authority, and the certificates that it signs: for both servers, and for a witness.

A certificate names the server as in cluster.toml, and its address, and is good for both ends of a connection. Keys are
made where they are used; what is signed elsewhere is asked for with a request (PKCS #10).
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEARS = 20  # as long as anybody runs a pair: nothing renews them by itself
COMMON_NAME_CHARACTERS = 64  # RFC 5280, ub-common-name
BEFORE = datetime.timedelta(days=1)  # the other server's clock may be late


class BadCertificate(Exception):
    """Not what a certificate, a request or a key is."""


@dataclass(frozen=True)
class Pem:
    """A certificate, or a request for one, and its private key."""

    text: str
    key: str


def make_authority(pair: str) -> Pem:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"hotpair pair {pair}")
    made = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pem(_text(made), _key_text(key))


def make_request(name: str) -> Pem:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return Pem(request.public_bytes(serialization.Encoding.PEM).decode(), _key_text(key))


def sign(authority: Pem, request: str, name: str, address: str) -> str:
    """A certificate for the request's key: the name and address are those given here, whatever the request says.

    Raises BadCertificate.
    """
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        issuer = x509.load_pem_x509_certificate(authority.text.encode())
        key = serialization.load_pem_private_key(authority.key.encode(), None)
    except (ValueError, TypeError) as error:
        raise BadCertificate(f"the authority's files, or the request, cannot be used: {error}") from error
    public = asked.public_key()
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(public, ec.EllipticCurvePublicKey):
        raise BadCertificate("only keys on elliptic curves are signed here")
    if not asked.is_signature_valid:
        raise BadCertificate("the request is not signed with its own key")
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    try:
        names.append(x509.IPAddress(ipaddress.ip_address(address)))
    except ValueError:
        if address != name:
            names.append(x509.DNSName(address))
    made = (
        _builder(_name(name), issuer.subject, public)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _text(made)


def make_certificate(authority: Pem, name: str, address: str) -> Pem:
    """With a key made here."""
    request = make_request(name)
    return Pem(sign(authority, request.text, name, address), request.key)


def fingerprint(certificate: str) -> bytes:
    """SHA-256 of the first certificate in a PEM text. Raises BadCertificate."""
    try:
        return x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256())
    except ValueError as error:
        raise BadCertificate(f"this is no certificate: {error}") from error


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    """Cut to what a common name may have; nobody looks at the rest."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:COMMON_NAME_CHARACTERS])])


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
