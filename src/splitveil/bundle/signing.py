"""Ed25519 signatures of manifests, which hold the SHA-256 of every file; needs the package cryptography."""

from pathlib import Path

from splitveil.bundle.manifest import SIGNATURE
from splitveil.bundle.reading import read_file
from splitveil.errors import BundleError

SIGNATURE_BYTES = 64
_KEY_HELP = "make a pair with 'openssl genpkey -algorithm ed25519' and 'openssl pkey -pubout'"


def sign(manifest: bytes, private_key: Path) -> bytes:
    """The signature (64 bytes) of a manifest.

    Raises:
        BundleError: the file holds no Ed25519 private key without a passphrase.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        content = private_key.read_bytes()
        key = load_pem_private_key(content, password=None)
    except OSError as error:
        raise BundleError(_unread(private_key, error)) from error
    except TypeError as error:  # it wants a passphrase
        raise BundleError(
            f"the key {private_key} has a passphrase, which cannot be given here; take one without, which "
            "'openssl pkey -in KEY -out NEW' writes"
        ) from error
    except ValueError as error:
        if b"PUBLIC KEY" in content:
            raise BundleError(
                f"{private_key} holds no private key but a public one; sign with the private one"
            ) from error
        raise BundleError(f"{private_key} holds no private key that can be read; {_KEY_HELP}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{private_key} holds a key of another kind than Ed25519; {_KEY_HELP}")
    return key.sign(manifest)


def check_signature(folder: Path, manifest: bytes, public_key: Path) -> None:
    """See that a folder holds the key's signature of its manifest.

    Raises:
        BundleError: there is no signature, it is of another key or another manifest, or the key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key.read_bytes())
    except OSError as error:
        raise BundleError(_unread(public_key, error)) from error
    except ValueError as error:
        raise BundleError(f"{public_key} holds no public key that can be read ({error}); {_KEY_HELP}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{public_key} holds a key of another kind than Ed25519; {_KEY_HELP}")
    try:
        signature = read_file(folder, SIGNATURE, SIGNATURE_BYTES)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not signed, but a signature is required; export with --sign KEY") from error
    try:
        key.verify(signature, manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"{folder} does not carry the signature of {public_key}; do not use it, or name the right key"
        ) from error


def _unread(key: Path, error: OSError) -> str:
    return f"the key {key} cannot be read ({error.strerror}); name the file that holds it"
