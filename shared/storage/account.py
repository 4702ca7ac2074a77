"""Asks an S3 server, in seconds, whether it answers and knows the credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore import exceptions as errors
from urllib3.exceptions import HTTPError

from shared.errors import StorageError, StorageRefusedError
from shared.storage.s3 import _client

if TYPE_CHECKING:
    from shared.settings import Settings

CONNECT_SECONDS, READ_SECONDS = 3.0, 3.0
"""What a person waits for; a job's own patience is in the settings."""
_MAY_NOT_LIST = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}


def buckets(settings: Settings) -> list[str] | None:
    """Name the buckets that the credentials see; None when they may not list any, as keys of a single bucket may not.

    Raises `StorageRefusedError` when there are no credentials or the server does not accept them, `StorageError` when nothing
    that speaks S3 answers, `UsageError` for settings that cannot be.
    """
    waits = {"s3_connect_timeout": CONNECT_SECONDS, "s3_read_timeout": READ_SECONDS, "s3_attempts": 1}
    where = settings.endpoint_url or "AWS"
    try:
        answer = _client(settings.model_copy(update=waits)).list_buckets()
        return [bucket["Name"] for bucket in answer["Buckets"]]
    except errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MAY_NOT_LIST:
            return None
        if 400 <= int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) < 500 and not code.isdigit():  # noqa: PLR2004 - HTTP
            msg = f"{where} answers, but refuses the credentials ({code}): correct the key and its secret"
            raise StorageRefusedError(msg) from None
        raise StorageError(f"{where} answers, but not as S3 does ({code}): check --endpoint-url") from None
    except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.ProfileNotFound) as error:
        msg = f"no credentials ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise StorageRefusedError(msg) from None
    except (errors.EndpointConnectionError, errors.ConnectTimeoutError, errors.ReadTimeoutError):
        raise StorageError(f"no S3 server answers at {where}: start it, or check --endpoint-url") from None
    except (errors.BotoCoreError, HTTPError, OSError, KeyError) as error:
        line = " ".join(str(error).split())[:200]
        raise StorageError(f"what answers at {where} does not speak S3: check --endpoint-url ({line})") from None
