"""Object storage behind one small interface: S3, a local folder, memory."""

from shared.storage.base import Blob, Stat, Storage, open_storage
from shared.storage.memory import MemoryStorage
from shared.storage.parallel import in_parallel

__all__ = ["Blob", "MemoryStorage", "Stat", "Storage", "in_parallel", "open_storage"]
