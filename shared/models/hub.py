"""Models of the Hugging Face hub, fetched into folders of our own in the hub's layout."""

from __future__ import annotations

import fnmatch
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import ModelMissingError, UsageError
from shared.models.record import Model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMPLETE = "vitrina.json"
"""Written last: an interrupted download never passes for a whole one. Holds the commit and the files with their sizes."""
TEXTS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja")
"""Configurations and tokenizers; never code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel(Model):
    """One repository at one revision."""

    repo: str
    weights: tuple[str, ...] = ("*.safetensors",)
    """Patterns of the files of weights."""
    otherwise: tuple[str, ...] = ()
    """Patterns taken where the repository has none of these: full precision, or PyTorch's own format."""
    without: tuple[str, ...] = ()
    """Patterns of what is left there: other precisions, parts that are not used."""
    folder: str = ""
    """Inside the models' folder; the model's name where empty."""

    @property
    def origin(self) -> str:
        """Name repository and revision."""
        return f"{self.repo}@{self.revision}"

    def find(self, models_dir: Path) -> Path:
        """Return the folder once every file is there in its size."""
        folder = models_dir / (self.folder or self.name)
        try:
            record = json.loads((folder / COMPLETE).read_text())
            lacking = [name for name, size in record["files"].items() if (folder / name).stat().st_size != size]
        except (OSError, ValueError, KeyError):
            lacking = [COMPLETE]
        if lacking:
            msg = f"model {self.name} is not whole at {folder}: run `vitrina models fetch {self.name}`"
            raise ModelMissingError(msg)
        return folder

    def commit(self, models_dir: Path) -> str:
        """Return the commit that was fetched. Raises `ModelMissingError`."""
        return str(json.loads((self.find(models_dir) / COMPLETE).read_text())["commit"])

    def fetch(self, models_dir: Path) -> Path:
        """Download what is needed, going on where an earlier download stopped. The commit is pinned by the first fetch."""
        try:
            return self.find(models_dir)
        except ModelMissingError:
            pass
        try:
            import httpx2  # noqa: PLC0415 - an extra
            import huggingface_hub  # noqa: PLC0415 - an extra
            from huggingface_hub.errors import (  # noqa: PLC0415 - an extra
                GatedRepoError,
                OfflineModeIsEnabled,
                RepositoryNotFoundError,
                RevisionNotFoundError,
            )
        except ImportError:
            raise UsageError("models of the hub need huggingface-hub: install vitrina[production]") from None
        folder = models_dir / (self.folder or self.name)
        try:
            return self._fetch(folder, huggingface_hub)
        except OfflineModeIsEnabled:
            raise UsageError(f"cannot fetch {self.origin}: offline mode is on: unset HF_HUB_OFFLINE") from None
        except GatedRepoError:
            msg = f"{self.repo} wants its terms accepted: do so on its page, set HF_TOKEN, then fetch again"
            raise UsageError(msg) from None
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise UsageError(f"the hub has no {self.origin}: check the id, or set HF_TOKEN for a private one") from None
        except (OSError, httpx2.HTTPError) as error:
            first = str(error).partition("\n")[0]
            raise UsageError(f"cannot bring {self.origin} to {folder}: {first}: see to it, then fetch again") from None

    def _fetch(self, folder: Path, hub: Any) -> Path:
        info = hub.HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        files = self._choose({file.rfilename: int(file.size or 0) for file in info.siblings})
        folder.mkdir(parents=True, exist_ok=True)
        room, need = shutil.disk_usage(folder).free, sum(files.values())
        if need > room:
            msg = f"{self.origin} needs {need / 1e9:.1f} GB and {folder} has {room / 1e9:.1f}: set VITRINA_MODELS_DIR"
            raise UsageError(msg)
        hub.snapshot_download(self.repo, revision=info.sha, local_dir=folder, allow_patterns=list(files))
        record = {"repo": self.repo, "revision": self.revision, "commit": info.sha, "files": files}
        (folder / COMPLETE).write_text(json.dumps(record, indent=1))
        return folder

    def _choose(self, files: Mapping[str, int]) -> dict[str, int]:
        kept = {name: size for name, size in files.items() if not _matches(name, self.without)}
        weights = {name: size for name, size in kept.items() if _matches(name, self.weights)}
        weights = weights or {name: size for name, size in kept.items() if _matches(name, self.otherwise)}
        if not weights:
            wanted = " or ".join((*self.weights, *self.otherwise))
            raise UsageError(f"{self.origin} holds no weights as {wanted}: choose another revision")
        return {name: size for name, size in kept.items() if _matches(name, TEXTS)} | weights


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
