"""The one exception tree.

Every message tells the operator the next step. Whether a failure can heal by itself is data on the class
(`retryable`), and `reason` is the short stable word that summaries, reports and dashboards count by.
"""

from __future__ import annotations

from typing import ClassVar


class VitrinaError(Exception):
    """Base of every expected failure."""

    reason: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False


# --- what an operator got wrong -------------------------------------------------------------------------------------


class UsageError(VitrinaError):
    """A command, setting or address that cannot work as given."""

    reason = "usage"


class RecipeError(UsageError):
    """The recipe is not valid; the message names the field and the allowed values."""

    reason = "bad_recipe"


class JobNotFoundError(UsageError):
    """There is no such job at this address."""

    reason = "unknown_job"


class JobForgottenError(JobNotFoundError):
    """The broker has no record of the job: it was lost, or the message is older than the record is kept."""


class LeaseHeldError(UsageError):
    """Another process holds the right to do this."""

    reason = "held"


class LeaseLostError(VitrinaError):
    """Another process has taken over, since this one did not renew its right in time."""

    reason = "held"


class JobDamagedError(VitrinaError):
    """A record of the job cannot be read; the message names it."""

    reason = "job_damaged"


class ModelMissingError(UsageError):
    """The model's files are not on this machine."""

    reason = "model_missing"


class ModelCorruptError(UsageError):
    """The model's files are not the published ones (wrong SHA-256)."""

    reason = "model_corrupt"


class ModelTooLargeError(UsageError):
    """The machine has too little memory for the model's weights."""

    reason = "model_too_large"


# --- what is wrong with one item: recorded at once, never retried -------------------------------------------------


class ItemError(VitrinaError):
    """Base of what is wrong with one photo or message."""

    reason = "bad_item"


class KeyRefusedError(ItemError):
    """The source key could escape its folder or cannot be written down safely."""

    reason = "bad_key"


class MessageError(ItemError):
    """A task's argument is not an item message of a known version."""

    reason = "bad_message"


class PictureError(ItemError):
    """Base of what is wrong with a picture."""

    reason = "unreadable"


class UnreadablePictureError(PictureError):
    """The file is empty, cut short or damaged."""

    reason = "unreadable"


class UnsupportedPictureError(PictureError):
    """The file is not a picture, or in a format outside the allow-list."""

    reason = "unsupported"


class PictureTooLargeError(PictureError):
    """The file exceeds the limit on bytes or on pixels."""

    reason = "too_large"


class PictureTooSmallError(PictureError):
    """The picture has too few pixels to hold a product."""

    reason = "too_small"


class NoProductError(ItemError):
    """Segmentation found nothing to cut out."""

    reason = "no_product"


class MaskMissingError(ItemError):
    """The recipe takes masks from elsewhere, and this photo came without one."""

    reason = "no_mask"


class PromptError(ItemError):
    """The item's points or box cannot be where its product is."""

    reason = "bad_prompt"


class SourceChangedError(ItemError):
    """The photo is not the one that was listed."""

    reason = "source_changed"


class WorkerLostError(ItemError):
    """The item was started several times and never ended: it probably kills its worker."""

    reason = "worker_lost"


class JobCancelledError(ItemError):
    """The job was cancelled before this item was made: `vitrina retry JOB --reason cancelled` runs it after all."""

    reason = "cancelled"


class StageFailedError(ItemError):
    """A model or a stage raised something unexpected on this item; the log has the traceback."""

    reason = "stage_error"


# --- what the world got wrong -----------------------------------------------------------------------------------


class StorageError(VitrinaError):
    """The storage answered with a fault that may pass (timeout, 5xx, reset)."""

    reason = "storage"
    retryable = True


class ObjectMissingError(StorageError):
    """The object is not there; a retry cannot help."""

    reason = "missing"
    retryable = False


class StorageRefusedError(StorageError):
    """The storage refuses us: no such bucket, wrong credentials, read-only."""

    reason = "storage_refused"
    retryable = False


class StorageReadOnlyError(StorageRefusedError):
    """The storage takes nothing from anybody any more: it is no fault of one item."""


class BrokerError(VitrinaError):
    """The broker cannot be reached or refuses us."""

    reason = "broker"
    retryable = True


class ProgressLostError(BrokerError):
    """The broker came back empty: what is known of the job must be worked out from storage again."""


class OutOfMemoryError(VitrinaError):
    """Not enough memory for even one item; another attempt may find more free."""

    reason = "out_of_memory"
    retryable = True
