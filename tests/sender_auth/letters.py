"""Signed messages made by hand, with any tag a test wants: an independent, plain DKIM signer."""

import hashlib
from base64 import b64encode
from functools import cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

LETTER = (
    b"From: Ann <ann@example.com>\r\n"
    b"To: bob@example.net\r\n"
    b"Subject: An  invitation\r\n"
    b"Date: Tue, 1 Jul 2025 10:00:00 +0000\r\n"
    b"Message-ID: <1@example.com>\r\n"
    b"\r\n"
    b"Come and see. \r\n\r\nAnn\r\n\r\n\r\n"
)
AT = 1_750_000_000
Private = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def record(private: Private, tags: str = "v=DKIM1; ") -> str:
    """The TXT text that publishes a key."""
    public = private.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        kind, encoding, form = (
            "rsa",
            serialization.Encoding.DER,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    else:
        kind, encoding, form = "ed25519", serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return f"{tags}k={kind}; p={b64encode(public.public_bytes(encoding, form)).decode()}"


def sign(content: bytes, private: Private, **tags: str | None) -> bytes:
    """Content under a signature in simple/simple form; tags replace the usual ones, None leaves one out.

    A number in l= cuts the hashed body.
    """
    head, _, body = content.partition(b"\r\n\r\n")
    canonical = body.rstrip(b"\r\n") + b"\r\n"
    length = tags.get("l") or ""
    if length.isdigit():
        canonical = canonical[: int(length)]
    usual: dict[str, str | None] = {
        "v": "1",
        "a": "rsa-sha256" if isinstance(private, rsa.RSAPrivateKey) else "ed25519-sha256",
        "d": "example.com",
        "s": "sel",
        "h": "from:to:subject:date:message-id",
        "t": str(AT),
        "bh": b64encode(hashlib.sha256(canonical).digest()).decode(),
    }
    usual |= tags
    value = "; ".join(f"{name}={text}" for name, text in usual.items() if text is not None and name != "b")
    field = f"DKIM-Signature: {value}; b=".encode()
    data = _signed(head + b"\r\n", usual["h"] or "") + field
    signature = tags.get("b") or b64encode(_make(private, data)).decode()
    return field + signature.encode() + b"\r\n" + content


def _signed(head: bytes, names: str) -> bytes:
    lines = head.splitlines(keepends=True)
    signed = b""
    for name in names.lower().split(":"):
        for line in reversed(lines):
            if line.lower().startswith(name.strip().encode() + b":"):
                signed += line
                lines.remove(line)
                break
    return signed


def _make(private: Private, data: bytes) -> bytes:
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return private.sign(hashlib.sha256(data).digest())
