"""What a failed TLS handshake is called: OpenSSL's words become result types.

Owns the mapping alone. RFC 8460 4.3.1; the codes are those of X509_verify_cert_error_string(3).
"""

from __future__ import annotations

import ssl

from server.transport.security import Fault, ResultType

_NOT_YET_VALID, _EXPIRED = 9, 10
_HOST_MISMATCH, _ADDRESS_MISMATCH = 62, 64
_TYPES = {
    _NOT_YET_VALID: ResultType.EXPIRED,
    _EXPIRED: ResultType.EXPIRED,
    _HOST_MISMATCH: ResultType.HOST_MISMATCH,
    _ADDRESS_MISMATCH: ResultType.HOST_MISMATCH,
}


def handshake_fault(error: Exception) -> Fault:
    """Return the fault that ended a handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = _TYPES.get(error.verify_code, ResultType.NOT_TRUSTED)
        return Fault(kind, error.verify_message, f"X509_V_ERR_{error.verify_code}")
    reason = getattr(error, "reason", None)
    text = str(reason or error) or type(error).__name__
    return Fault(ResultType.VALIDATION, text, str(reason or ""))
