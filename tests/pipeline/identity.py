"""An issuer that is not ours: PyJWT makes keys and signs tokens for the issuer in argv[1]."""

import json
import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

issuer, now = sys.argv[1], int(time.time())
keys = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "PS256": rsa.generate_private_key(public_exponent=65537, key_size=3072),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
claims = {
    "iss": issuer,
    "aud": "mooring",
    "sub": "system:serviceaccount:apps:my-app",
    "iat": now,
    "nbf": now,
    "exp": now + 600,
    "kubernetes.io": {"namespace": "apps"},
}


def public(name):
    algorithm = jwt.get_algorithm_by_name(name)
    jwk = json.loads(algorithm.to_jwk(keys[name].public_key()))
    return {**jwk, "kid": name, "use": "sig", "alg": name}


def sign(name, **changed):
    return jwt.encode({**claims, **changed}, keys[name], algorithm=name, headers={"kid": name})


json.dump(
    {
        "keys": [public(name) for name in keys],
        "good": {name: sign(name) for name in keys},
        "bad": {
            "jwt-audience": sign("RS256", aud="other"),
            "jwt-expired": sign("ES256", exp=now - 60),
            "jwt-not-yet-valid": sign("EdDSA", nbf=now + 300),
            "jwt-lifetime": sign("RS256", exp=now + 90_000),
            "jwt-issuer": sign("RS256", iss="https://other.example"),
            "unknown-identity": sign("RS256", sub="system:serviceaccount:apps:other"),
        },
    },
    sys.stdout,
)
