"""Object storage behind one small interface: S3, a local folder, memory."""

from shared.storage.base import Blob, Stat, Storage, open_storage
from shared.storage.memory import MemoryStorage

__all__ = ["Blob", "MemoryStorage", "Stat", "Storage", "open_storage"]
