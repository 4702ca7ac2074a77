"""S3 and everything that speaks like it, through boto3."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as errors
from botocore.config import Config
from botocore.session import get_session
from botocore.utils import parse_timestamp
from urllib3.exceptions import HTTPError

from shared.errors import (
    KeyRefusedError,
    ObjectMissingError,
    PictureTooLargeError,
    StorageError,
    StorageRefusedError,
    UsageError,
)
from shared.storage.ahead import LAST, read_ahead
from shared.storage.base import Blob, Stat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_s3 import S3Client

    from shared.settings import Settings

AT_ONCE = 32
"""Short requests on their way together: enough for a thousand a second where an answer takes 30 ms."""
MOST_THREADS = 128
"""Task threads of a worker that was not told how many, see `Settings.threads`: connections to keep at most, none of which is opened for nothing."""
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"412", "PreconditionFailed"}
_CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}
# Another writer was at the same key; S3 asks to try again, for it may have written nothing.
_NO_CONDITIONS = {"501", "NotImplemented"}
_CONDITIONAL_TRIES = 5
# One that learns that the server knows no conditions, and a few that meet other writers.
_NO_BUCKET = {"NoSuchBucket"}
_REFUSED = {
    "401",
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Unauthorized",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired"}
_MD5 = re.compile(r"[0-9a-f]{32}")
# Of an object that was uploaded in one part; that of several has a dash.
_REFUSED_ERRORS = (errors.NoCredentialsError, errors.PartialCredentialsError, errors.ProfileNotFound)
_WRONG_ADDRESS = (errors.ParamValidationError,)


class S3Storage:
    """A bucket and a prefix in it; keys are relative to the prefix."""

    at_once = AT_ONCE

    def __init__(self, settings: Settings, bucket: str, prefix: str) -> None:
        self._settings = settings
        self._opened = _client(settings)
        self._expired = False
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint = settings.endpoint_url or "AWS"
        self._conditional = True
        self._etags_are_md5 = True
        self._doubted = "", ""
        # The last object whose ETag said something else than its content, and what that was.
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    @classmethod
    def from_settings(cls, url: str, settings: Settings) -> S3Storage:
        """Open `s3://bucket/prefix`. Nothing is sent until first use. Raises `UsageError` for a malformed address."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise UsageError(f"{url!r} names no bucket: use s3://bucket/prefix")
        prefix = prefix.strip("/")
        return cls(settings, bucket, f"{prefix}/" if prefix else "")

    def list(self, prefix: str = "", *, after: str = "", ahead: bool = False) -> Iterator[Stat]:
        """Yield a page of 1,000 at a time; markers of empty folders are left out."""
        if not ahead:
            yield from self._plain(prefix, after)
            return
        if after:  # the folder it lies in is read to its end, the others as if there had been nothing before
            folder, slash, _ = after.removeprefix(prefix).partition("/")
            if slash:
                yield from self._plain(f"{prefix}{folder}/", after)
                after = f"{prefix}{folder}/{LAST}"
        entries = self._level(prefix, after)
        first = list(islice(entries, 2))
        if len(first) == 1 and isinstance(first[0], str):  # all in one folder: its own folders are what to read ahead
            yield from self.list(first[0], ahead=True)
            return
        yield from read_ahead(
            chain(first, entries), lambda folder: self._plain(folder, ""), lambda last: self._plain(prefix, last)
        )

    def _plain(self, prefix: str, after: str) -> Iterator[Stat]:
        for page in self._pages(prefix, after):
            yield from self._stats(page)

    def _level(self, prefix: str, after: str) -> Iterator[Stat | str]:
        """Yield the objects of one folder, and the names of the folders in it, in key order."""
        for page in self._pages(prefix, after, Delimiter="/"):
            folders = [row["Prefix"].removeprefix(self._prefix) for row in page.get("CommonPrefixes", [])]
            named = [(stat.key.encode(), stat) for stat in self._stats(page)]
            yield from (entry for _, entry in sorted([*named, *((f.encode(), f) for f in folders)], key=itemgetter(0)))

    def _pages(self, prefix: str, after: str, **options: Any) -> Iterator[Any]:
        start: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix, **start, **options
        )
        iterator = iter(pages)
        while True:
            with self._errors(prefix):
                page = next(iterator, None)
            if page is None:
                return
            yield page

    def _stats(self, page: Any) -> Iterator[Stat]:
        for row in page.get("Contents", []):
            if not row["Key"].endswith("/"):
                key = row["Key"].removeprefix(self._prefix)
                yield Stat(key, row["Size"], row["ETag"].strip('"'), row["LastModified"].timestamp())

    def _name(self, key: str) -> str:
        # To S3 these are letters like others; a server that keeps objects in folders may follow them out of the prefix.
        if not {".", ".."}.isdisjoint(key.split("/")):
            raise KeyRefusedError(f"{key!r} leaves {self.url}: rename it")
        return self._prefix + key

    def head(self, key: str) -> Stat | None:
        """Tell what is known of an object."""
        try:
            with self._errors(key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        except ObjectMissingError:
            return None
        return _stat(key, answer)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Read an object; its length and its checksum, or the ETag that is one, are compared with what was announced."""
        with self._errors(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key))
            stat = _stat(key, answer)
            # Its own `with` would hand out the raw stream, which checks neither length nor checksum.
            with closing(answer["Body"]) as body:
                if limit is not None and stat.size > limit:
                    msg = f"{stat.size} bytes are more than {limit}: raise VITRINA_MAX_BYTES or shrink the file"
                    raise PictureTooLargeError(msg)
                data = body.read()
        self._check_md5(key, data, _announced_md5(answer, stat.etag))
        return Blob(data, stat)

    def _check_md5(self, key: str, data: bytes, announced: str | None) -> None:
        if announced is None or not self._etags_are_md5:
            return
        came = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if came == announced:
            return
        if self._doubted == (key, came):
            # Twice the same: the object is whole, and the server's ETags are something else.
            self._etags_are_md5 = False
            return
        self._doubted = key, came
        raise StorageError(f"{self.url}/{key}: what came is not what its ETag says")

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Write an object; S3 shows all of it or none."""
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._name(key),
            "Body": data,
            "ContentType": content_type,
            "Metadata": dict(metadata or {}),
        }
        if if_absent:
            return self._create(key, request)
        with self._errors(key):
            self._client.put_object(**request)
        return True

    def _create(self, key: str, request: dict[str, Any]) -> bool:
        """Write an object that is not there yet, by the server's own decision where it can take one."""
        for _ in range(_CONDITIONAL_TRIES):
            # Where the server cannot decide, a look before is the best there is.
            if self.head(key) is not None:
                return False
            condition = {"IfNoneMatch": "*"} if self._conditional else {}
            passing = _CONFLICT | _EXISTS | _NO_CONDITIONS if condition else _CONFLICT
            try:
                with self._errors(key, passing=passing):
                    self._client.put_object(**request | condition)
            except errors.ClientError as error:
                if _code(error) in _EXISTS:
                    return False
                if _code(error) in _NO_CONDITIONS:
                    self._conditional = False
            else:
                return True
        raise StorageError(f"{self.url}/{key}: others keep writing it")

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def check_writable(self) -> None:
        """Write and remove an empty object."""
        key = f".vitrina-probe-{secrets.token_hex(4)}"
        self.put(key, b"")
        self.delete(key)

    def ensure_bucket(self) -> None:
        """Create the bucket when it is not there; for the embedded stack and for tests."""
        with self._errors("", passing={"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}):
            try:
                self._client.create_bucket(Bucket=self._bucket)
            except errors.ClientError as error:
                if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise

    @property
    def _client(self) -> S3Client:
        if self._expired:
            # Keys that a file, a role or an instance hands out are read anew; those of variables stay what they are.
            self._opened, self._expired = _client(self._settings, instead_of=self._opened), False
        return self._opened

    @contextmanager
    def _errors(self, key: str, passing: frozenset[str] | set[str] = frozenset()) -> Iterator[None]:
        where = f"{self.url}/{key}"
        try:
            yield
        except errors.ClientError as error:
            if _code(error) in passing:
                raise
            raise self._client_error(error, where) from None
        except _REFUSED_ERRORS as error:
            msg = f"no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile ({error})"
            raise StorageRefusedError(msg) from None
        except _WRONG_ADDRESS as error:
            raise StorageRefusedError(f"{where} cannot be asked for: {_line(error)}") from None
        except errors.EndpointConnectionError:
            msg = f"no S3 server answers at {self._endpoint}: start it, or check --endpoint-url"
            raise StorageError(msg) from None
        except (errors.BotoCoreError, HTTPError, OSError) as error:
            raise StorageError(f"{where}: {_line(error)}") from None

    def _client_error(self, error: errors.ClientError, where: str) -> StorageError:
        code = _code(error)
        if code in _NO_BUCKET:
            msg = f"bucket {self._bucket!r} does not exist at {self._endpoint}: create it, or check --endpoint-url"
            return StorageRefusedError(msg)
        if code in _MISSING:
            return ObjectMissingError(f"no object {where}")
        if code in _EXPIRED:
            self._expired = True
            return StorageError(f"{where}: the credentials have expired ({code}): renew them where they come from")
        if code in _SKEWED:
            return StorageError(f"{where}: this machine's clock differs from the server's: set it ({code})")
        if code in _REFUSED:
            return StorageRefusedError(f"{where} is refused ({code}): check the credentials and the bucket's policy")
        return StorageError(f"{where}: the server answered {code}")


# Making a boto3 client reads megabytes of service descriptions; a worker opens the same one for each job.
_clients: dict[tuple[str, ...], S3Client] = {}
_lock = threading.Lock()


def _client(settings: Settings, *, instead_of: S3Client | None = None) -> S3Client:
    """Return the client of these settings, and another one than `instead_of`."""
    key_id, secret = settings.access_key_id, settings.secret_access_key
    identity = (
        settings.endpoint_url or "",
        settings.s3_region or "",
        key_id.get_secret_value() if key_id else "",
        secret.get_secret_value() if secret else "",
        f"{settings.s3_path_style} {settings.threads} {settings.s3_attempts}",
        f"{settings.s3_connect_timeout} {settings.s3_read_timeout}",
    )
    with _lock:
        if _clients.get(identity) in {None, instead_of}:
            _clients[identity] = _new_client(settings)
        return _clients[identity]


def proxies(endpoint: str | None) -> dict[str, str] | None:
    """Tell boto3 which proxies to use for an endpoint."""
    # boto3 would send even loopback through HTTP_PROXY; None leaves the choice to the environment.
    host = urlsplit(endpoint).hostname if endpoint else None
    return {} if host in {"127.0.0.1", "localhost", "::1"} else None


def parse_time(value: Any) -> datetime:
    """Read a time as botocore does; those of a listing, which come a thousand an answer, without the guessing that was two thirds of it."""
    with suppress(TypeError, ValueError):
        time = datetime.fromisoformat(value)
        if time.tzinfo is not None:  # else it may be no date at all, but seconds
            return time
    return parse_timestamp(value)


def _new_client(settings: Settings) -> S3Client:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if settings.s3_path_style and settings.endpoint_url else "auto"},
        retries={"mode": "standard", "total_max_attempts": settings.s3_attempts},
        connect_timeout=settings.s3_connect_timeout,
        read_timeout=settings.s3_read_timeout,
        # One too few, and it is made and closed again for each request.
        max_pool_connections=max(AT_ONCE, 2 * (settings.threads or MOST_THREADS) + 4),
        proxies=proxies(settings.endpoint_url),
    )
    try:
        core = get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
        session = boto3.session.Session(botocore_session=core)
        region = settings.s3_region or session.region_name or ("us-east-1" if settings.endpoint_url else None)
        key_id, secret = settings.access_key_id, settings.secret_access_key
        return session.client(
            "s3",
            region_name=region,
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=key_id.get_secret_value() if key_id else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=config,
        )
    except (errors.BotoCoreError, ValueError) as error:
        raise UsageError(f"cannot set up S3: {_line(error)}: check --endpoint-url and the AWS settings") from None


def _code(error: errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _announced_md5(answer: Any, etag: str) -> str | None:
    """Return the body's MD5 where the ETag is one and no checksum was sent, which botocore compares itself."""
    if any(name.startswith("Checksum") for name in answer) or not _MD5.fullmatch(etag):
        return None
    # Encrypted with a key of one's own, its ETag looks the same and is another.
    return (
        None if answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer else etag
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _stat(key: str, answer: Any) -> Stat:
    return Stat(
        key=key,
        size=answer["ContentLength"],
        etag=answer["ETag"].strip('"'),
        modified=answer["LastModified"].timestamp(),
        content_type=answer.get("ContentType", ""),
        metadata=answer.get("Metadata", {}),
    )
