"""Photos that S3 tells of by itself: its event messages, read from an SQS queue."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

import boto3
from botocore import exceptions as errors
from botocore.config import Config

from producer.listing import may_be_photo
from shared.errors import KeyRefusedError, StorageError, UsageError
from shared.messages import Photo
from shared.storage.s3 import proxies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from producer.selection import Selection
    from shared.recipe import Recipe
    from shared.settings import Settings
    from shared.storage import Storage

log = logging.getLogger(__name__)

WAIT_SECONDS = 10
"""A call to an empty queue waits so long for a message; SQS allows 20, and a person who stops a watch waits for it."""
ROUND = 1000
"""Messages read before what they name is queued and they are deleted."""


class EventQueue:
    """An SQS queue that a bucket sends its events to, straight or through SNS. A message is deleted once its photos are queued."""

    def __init__(
        self,
        url: str,
        ends: tuple[Storage, Storage],
        recipe: Recipe,
        selection: Selection,
        settings: Settings,
        *,
        wait: int = WAIT_SECONDS,
    ) -> None:
        """Open the queue at `url`; nothing is sent until first use. Raises `UsageError`."""
        self._source, destination = ends
        address = urlsplit(self._source.url)
        if address.scheme != "s3":
            raise UsageError("--events goes with a source at s3://: a folder is looked at again and again")
        self._bucket, self._prefix = address.netloc, address.path.lstrip("/") + "/" if address.path.strip("/") else ""
        self._url = url
        self._client = _client(url, settings)
        self._wait = wait
        self._waiting: list[dict[str, str]] = []
        may_be, named = may_be_photo(self._source, destination, recipe), selection.named()
        self._wanted: Callable[[str], bool] = lambda key: may_be(key) and named(key)

    def photos(self) -> Iterator[Photo]:
        """Yield the photos of the messages that wait, as the source holds them by now. Raises `StorageError`."""
        self._waiting = []
        while len(self._waiting) < ROUND:
            with _told(self._url):
                answer: Any = self._client.receive_message(
                    QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=0 if self._waiting else self._wait
                )
            messages = answer.get("Messages", [])
            if not messages:
                return
            for message in messages:
                try:
                    keys = list(self._keys(message["Body"]))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    # Deleted it would be lost; left alone, the queue's own redrive policy takes it aside.
                    text = "message %s is no S3 event (%s: %s): left in the queue"
                    log.warning(text, message["MessageId"], type(error).__name__, error, extra={"action": "watch"})
                    continue
                self._waiting.append({"Id": str(len(self._waiting)), "ReceiptHandle": message["ReceiptHandle"]})
                for key in keys:
                    # The message may be hours old: what counts is the photo as it is.
                    try:
                        stat = self._source.head(key)
                    except KeyRefusedError:
                        yield Photo(key, "")  # recorded as its failure
                        continue
                    if stat is not None:
                        yield Photo(key, stat.etag)

    def taken(self) -> None:
        """Delete the messages whose photos are queued. One that cannot be comes again, and is skipped."""
        for start in range(0, len(self._waiting), 10):
            with _told(self._url):
                self._client.delete_message_batch(QueueUrl=self._url, Entries=self._waiting[start : start + 10])
        self._waiting = []

    def _keys(self, body: str) -> Iterator[str]:
        event = json.loads(body)
        if "Message" in event and "TopicArn" in event:
            event = json.loads(event["Message"])
        if event.get("Event") == "s3:TestEvent":  # sent once, when the bucket is told of the queue
            return
        for record in event["Records"]:
            record["s3"]["object"]["key"].encode()  # S3 has no name that is not Unicode
            bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
            if not record["eventName"].startswith("ObjectCreated:") or bucket != self._bucket:
                continue
            if key.startswith(self._prefix) and self._wanted(key := key.removeprefix(self._prefix)):
                yield key


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn boto3's errors into `StorageError` with the next step."""
    try:
        yield
    except (errors.BotoCoreError, errors.ClientError) as error:
        what = " ".join(str(error).split())
        raise StorageError(f"the queue {url} does not answer: check its address and our rights ({what})") from None


def _client(url: str, settings: Settings) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or not parts.path.strip("/"):
        raise UsageError(f"{url!r} is no address of an SQS queue: https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
    host = parts.hostname or ""
    aws = host.startswith("sqs.") and host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    endpoint = None if aws else f"{parts.scheme}://{parts.netloc}"
    session = boto3.session.Session()
    region = host.split(".")[1] if aws else settings.s3_region or session.region_name or "us-east-1"
    key_id, secret = settings.access_key_id, settings.secret_access_key
    return session.client(
        "sqs",
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            proxies=proxies(endpoint), retries={"mode": "standard", "total_max_attempts": settings.s3_attempts}
        ),
    )
