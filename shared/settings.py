"""The one settings object.

Precedence, highest first: command line, environment (`VITRINA_*`), `vitrina.env` in the working folder, these defaults. The
object is built at an entry point and handed down; nothing else reads the environment. `AWS_*` variables and profiles
keep their usual meaning through boto3.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import UsageError
from shared.wording import fault


def _cache_dir() -> Path:
    try:
        return Path("~/.cache/vitrina").expanduser()
    except RuntimeError:  # a container's user may have no home at all
        return Path(tempfile.gettempdir()) / "vitrina"


USUAL_BATCH = 8
"""Of a model that names no largest batch of its own."""
USUAL_THREADS = 8
"""Of a worker without a GPU."""


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(env_prefix="VITRINA_", env_file="vitrina.env", extra="ignore", frozen=True)

    # broker
    broker: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Address of the queues: Redis or Valkey, or RabbitMQ (`amqp://`); a secret because it may carry a password."""
    progress: SecretStr | None = None
    """Redis-protocol address of the jobs' progress, where the queues are elsewhere; the broker itself without it."""
    transport: Literal["atomic", "stock"] = "atomic"
    """How queues in Redis are used: `atomic` loses nothing; `stock` is kombu's own, which loses messages of killed workers and redelivers late."""
    visibility_timeout: float = Field(default=12, gt=0)
    """Seconds before the messages of a worker that was killed are handed to another. A live worker renews them, however long a task takes;
    one that is held up for longer than this finds its work done twice, and once written."""

    # storage
    endpoint_url: str | None = None
    """S3 endpoint for anything but AWS, for example http://127.0.0.1:8333."""
    s3_path_style: bool = True
    """`endpoint/bucket/key` rather than `bucket.endpoint/key`; what most S3-compatible servers need."""
    s3_region: str | None = None
    access_key_id: SecretStr | None = None
    """Only when the usual AWS variables or profile are not to be used."""
    secret_access_key: SecretStr | None = None
    s3_connect_timeout: float = Field(default=5, gt=0)
    """Seconds."""
    s3_read_timeout: float = Field(default=60, gt=0)
    """Seconds."""
    s3_attempts: int = Field(default=5, ge=1)
    """Tries per request in botocore's standard retry mode, before the task's own retries."""

    # producer
    window: int = Field(default=2000, ge=1)
    """Unfinished images allowed in the queues at once: what bounds Redis and memory for any catalogue size."""

    look_every: float = Field(default=5, gt=0)
    """Seconds between two looks for items that the broker has lost. Each look reads the messages of all queues, which windows keep to a few thousand."""

    # workers
    threads: int | None = Field(default=None, ge=1)
    """Task threads of one worker. None is twice the batch, so that one is made ready while another is at work; 8 where neither is set and there is no GPU."""
    max_batch: int | None = Field(default=None, ge=1)
    """Largest batch handed to a model. None leaves it to the model: 8 on a CPU, what fills it on a GPU."""
    batch_deadline: float = Field(default=600, gt=0)
    """Seconds after which a batch means a wedged device, and the worker exits non-zero."""
    task_deadline: float = Field(default=1800, gt=0)
    """Seconds after which one photo's work means a wedged worker, which then exits non-zero."""
    stall_deadline: float = Field(default=300, gt=0)
    """Seconds without any task, although messages wait, after which the same is done."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries of one item in one stage before a fault that might have passed is recorded as its failure."""
    max_deaths: int = Field(default=3, ge=1)
    """Starts, each alone in a worker, that never ended, after which an item is recorded as one that kills its worker."""
    outage_patience: float = Field(default=3600, ge=0)
    """Seconds for which a job's items are put off while its storage is down for all of them; then they fail."""
    picture_memory: int = Field(default=0, ge=0)
    """Bytes that the photos of one worker may take at once; 0 means a quarter of the machine's or the container's memory."""
    heartbeat_file: Path | None = None
    """A file that a healthy worker touches every second, for supervisors that look at files."""
    retry_base: float = Field(default=1.0, ge=0)
    """Seconds of the first retry's backoff; doubles each time, with jitter."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`. Where there are several GPUs, `auto` is the one with the fewest workers."""
    gpu_claims: Path = Path(tempfile.gettempdir()) / f"vitrina-gpus-{os.getuid()}"
    """A folder that the workers of a machine share, containers as well, to tell each other which GPU they have taken."""
    preload: Path | None = None
    """A recipe whose model a worker loads before it takes its first item; without one the starter models. Others are loaded when a job asks for them."""
    models_kept: int = Field(default=2, ge=1)
    """Models a worker keeps loaded at once; the one used longest ago makes room."""
    model_threads: int = Field(default=0, ge=0)
    """CPU threads of one model; 0 means one on a shared machine, see `threads_per_model`."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus endpoint of a worker or keeper; 0 for none. One port per process of a machine."""

    # Flower
    flower_address: str = "127.0.0.1"
    """Where `vitrina flower` listens; any address that other machines can reach needs `flower_auth`."""
    flower_port: int = Field(default=5555, ge=1, le=65535)
    flower_auth: SecretStr | None = None
    """`user:password`, or several with commas between them."""
    flower_url_prefix: str = Field(default="", pattern=r"^[\w/-]*$")
    """The path below which a proxy shows it."""
    flower_max_tasks: int = Field(default=10_000, ge=1)
    """Tasks it remembers."""
    flower_db: Path | None = None
    """A file that it keeps them in over a restart; without one they are forgotten."""

    # limits on what comes in
    max_bytes: int = Field(default=50_000_000, ge=1)
    """Largest source file."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest source picture, checked from its header before decoding."""

    # models
    models_dir: Path = Field(default_factory=_cache_dir)
    """Where fetched model files lie, in one folder per model."""

    # logs
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def queues_in_redis(self) -> bool:
        """Whether the queues lie in Redis, where they can be looked into."""
        return self.broker.get_secret_value().startswith(("redis://", "rediss://"))

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Build them; what is given wins over the environment, None counts as not given. Raises `UsageError`."""
        values = {name: value for name, value in given.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(f"VITRINA_{str(e['loc'][0]).upper()} {fault(e)}" for e in error.errors())
            raise UsageError(f"wrong setting: {problems}") from None
        except UnicodeDecodeError:
            raise UsageError("vitrina.env is not text: write it in UTF-8") from None

    def threads_per_model(self) -> int:
        """Return the CPU threads of one model: as set, else a third of the cores, since three stages share a machine."""
        return self.model_threads or max(1, (os.cpu_count() or 1) // 3)
