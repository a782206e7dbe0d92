"""What a failed request to a bucket means: whether to try again, and what to tell the user."""

import os
import re
import socket
import sys
from collections.abc import Iterator

from .errors import StoreError, UnreachableStoreError

# Raised when a connection breaks, stalls, or ends before the whole body has come. Looked up only where the package is
# loaded: each scheme has its own.
_BROKEN_CONNECTION = {
    "botocore.exceptions": (
        "HTTPClientError",  # ReadTimeoutError, ConnectionClosedError and ResponseStreamingError are such
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ProxyConnectionError",
        "IncompleteReadError",
        "FlexibleChecksumError",  # the service sent a checksum with the body, and the body is another
    ),
    "botocore.parsers": ("ResponseParserError",),  # an overloaded service may answer with half an XML document
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "google.auth.exceptions": ("TransportError",),
    "fsspec.exceptions": ("FSTimeoutError",),
}
_LASTING = {"botocore.exceptions": ("SSLError",), "aiohttp": ("ClientConnectorCertificateError", "InvalidURL")}
_BUSY_STATUS = frozenset((408, 425, 429))
# Codes of S3 that come with a status that would otherwise be final. A digest that does not match is a body that was
# damaged on its way.
_PASSING_CODES = frozenset(
    (
        *("SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequests", "OperationAborted"),
        *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
    )
)
_NO_BUCKET = frozenset(("NoSuchBucket", "InvalidBucketName"))
_NO_CREDENTIALS = frozenset(
    (
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"),
        *("TokenRetrievalError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError"),
    )
)
# Where the exceptions of the services' libraries are defined. An error of another package is a bug, not the bucket's.
_PACKAGES = frozenset(
    ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec", "gcsfs", "google", "adlfs", "azure", "urllib3")
)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to an account that may",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may",
}
# The attribute that holds the HTTP status. aiohttp's errors about broken bodies have another, `code`, which is none.
_STATUS = {"aiohttp": "status", "gcsfs": "code", "azure": "status_code"}
_MESSAGE_LENGTH = 300


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed when it is made again."""
    status, code = answer_of(error)
    if code in _PASSING_CODES or status in _BUSY_STATUS:
        return True
    if status is not None:
        return status >= 500 and status != 501
    if any(isinstance(cause, _types(_LASTING)) for cause in _causes(error)):
        return False
    broken: tuple[type[BaseException], ...] = (TimeoutError, ConnectionError, socket.gaierror)
    broken += _types(_BROKEN_CONNECTION)
    return any(isinstance(cause, broken) for cause in _causes(error))


def is_of_service(error: BaseException) -> bool:
    """Whether an error comes from the service or its library, not from a mistake in this program."""
    return any(
        isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] in _PACKAGES for cause in _causes(error)
    )


def answer_of(error: BaseException) -> tuple[int | None, str | None]:
    """HTTP status and the service's own code of an error; None where it has none."""
    status: int | None = None
    code: str | None = None
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = code or response.get("Error", {}).get("Code")
        attribute = _STATUS.get(type(cause).__module__.partition(".")[0])
        found = getattr(cause, attribute, None) if attribute else None
        if status is None and isinstance(found, int):
            status = found
    return status, code


def refusal(error: BaseException, where: str, verb: str) -> StoreError:
    """One line for a request that will not succeed by trying again.

    Parameters
    ----------
    error
        What the request ended in.
    where
        URL of the object.
    verb
        `read`, `written`, `listed` or `deleted`.
    """
    status, code = answer_of(error)
    scheme = _scheme(where)
    if "Invalid bucket name" in str(error):  # of botocore, before it asks the service
        return UnreachableStoreError(f"{where} cannot be {verb}: {_wrong_name(_bucket(where))}.")
    at_service = f" at {_endpoint()}" if scheme == "s3" and _endpoint() else ""
    if code in _NO_BUCKET or (code is None and status == 404):
        other = ", or set AWS_ENDPOINT_URL to the service that has it" if scheme == "s3" else ""
        return UnreachableStoreError(
            f"{where} cannot be {verb}: there is no bucket {_bucket(where)}{at_service}. Make it{other}."
        )
    if any(type(cause).__name__ in _NO_CREDENTIALS for cause in _causes(error)):
        return UnreachableStoreError(f"{where} cannot be {verb}: no credentials were found. {_set_credentials(where)}")
    if status in (401, 403) or isinstance(error, PermissionError):
        said = " ".join(str(part) for part in (status, code if code != str(status) else None) if part)
        return UnreachableStoreError(
            f"{where} may not be {verb}: the service{at_service} answers {said or 'that access is denied'}. "
            f"{_set_credentials(where)}"
        )
    return UnreachableStoreError(f"{where} cannot be {verb}: {what_happened(error)}{at_service}.")


def delay(error: BaseException, where: str, verb: str, nth: int, tries: int, wait_s: float) -> str:
    """One line for a request that has failed and is made again, as the try `nth` of `tries`."""
    endpoint, reason = _endpoint() if _scheme(where) == "s3" else "", what_happened(error)
    at = f" at {endpoint}" if endpoint and endpoint not in reason else ""
    return f"{where} could not be {verb} yet{at}: {reason}. Try {nth} of {tries} in {wait_s:.0f} s."


def silence(where: str, verb: str, tries: int, seconds: float) -> str:
    """One line for a first try whose service has never answered."""
    service = (_endpoint() if _scheme(where) == "s3" else "") or "the service"
    return (
        f"{where} could not be {verb} yet: {service} has not answered for {seconds:.0f} s; it is asked {tries} times."
    )


def exhaustion(error: BaseException, where: str, verb: str, tries: int, seconds: float) -> StoreError:
    """One line for a request that failed each time that it was made."""
    endpoint = _endpoint() if _scheme(where) == "s3" else ""
    return UnreachableStoreError(
        f"{where} could not be {verb} in {tries} tries over {seconds:.0f} s: {what_happened(error)}. Give the same "
        f"command again when {endpoint or 'the service'} answers"
        f"{', or correct AWS_ENDPOINT_URL' if endpoint else ''}."
    )


def what_happened(error: BaseException) -> str:
    """What a request ended in, in a few words without anything secret."""
    status, code = answer_of(error)
    if status is not None:
        return f"the service answers {status}{f' {code}' if code and code != str(status) else ''}"
    first = list(_causes(error))[-1]
    if isinstance(first, TimeoutError) or "Timeout" in type(first).__name__:
        return "no answer came in time"
    text = without_secrets(" ".join(str(first).split()))[:_MESSAGE_LENGTH].rstrip(". ")
    return f"{type(first).__name__}{f' ({text})' if text else ''}"


def without_secrets(text: str) -> str:
    """A text without the user names, passwords and signatures that a URL in it may carry."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", re.sub(r"(https?://[^\s?\"']*)\?[^\s\"']*", r"\1", text))


def _set_credentials(where: str) -> str:
    credentials = _CREDENTIALS.get(_scheme(where))
    if credentials is None:
        return "Check the URL and its credentials."
    service = ", and AWS_ENDPOINT_URL where the bucket is not Amazon's" if _scheme(where) == "s3" else ""
    return f"Set {credentials}{service}."


def _endpoint() -> str:
    return without_secrets(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")


def _scheme(where: str) -> str:
    return {"s3a": "s3", "gcs": "gs"}.get(scheme := where.partition("://")[0], scheme)


def _bucket(where: str) -> str:
    return where.partition("://")[2].partition("/")[0]


def _wrong_name(bucket: str) -> str:
    strange = "".join(sorted(set(re.sub(r"[A-Za-z0-9._-]", "", bucket))))
    said = f"holds {strange!r}" if strange else f"has {len(bucket):,} characters"
    return f"the bucket's name {said}; it is made of at most 63 letters a to z, digits, dots and hyphens"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__


def _types(names: dict[str, tuple[str, ...]]) -> tuple[type[BaseException], ...]:
    return tuple(
        getattr(sys.modules[module], name)
        for module, names_there in names.items()
        if module in sys.modules
        for name in names_there
        if hasattr(sys.modules[module], name)
    )
