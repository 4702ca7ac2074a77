"""Models of the Hugging Face hub, fetched into folders of our own in the hub's layout."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from shared.errors import ModelCorruptError, ModelMissingError, UsageError
from shared.models.record import COMPLETE, Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

TEXTS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja")
"""Configurations and tokenizers; never code."""

Choice = tuple[tuple[str, ...], ...]
_PIPELINE: Choice = (("*/*.fp16*.safetensors",), ("*/*.safetensors",))
# Of each part of a pipeline the half-precision weights, full ones where it has no others. Single files in the root are for other programs.
_NETWORK: Choice = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_lora_weights.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
)
# Some older repositories have no safetensors; transformers reads the others with weights_only.
_CHECKPOINT = ("*.pth", "*.pt")
# One file in a layout of its own, such as segment-anything's.
_OTHER_LAYOUTS = {
    "sam": "Segment Anything in transformers' layout: take sam-vit-h, sam-vit-l or sam-vit-b, or a checkpoint in segment-anything's own layout",
}
# By the model type that a repository's configuration tells: what no model here reads, and what to take.
_UNUSED = ("*.non_ema*",)
_OPTIONAL = "safety_checker"
# A part that is loaded only where a recipe asks for it.


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel(Model):
    """One repository at one revision."""

    repo: str
    folder: str = ""
    """Inside the models' folder; the model's name where empty."""
    file: str = ""
    """The one file of the repository that is wanted; where empty, whatever its weights are."""

    @property
    def origin(self) -> str:
        """Name repository and revision, and the file where there is but one."""
        return f"{self.repo}@{self.revision}{self.file and ':'}{self.file}"

    def find(self, models_dir: Path) -> Path:
        """Return the folder, or its one file, once every file of this revision is there in its size."""
        folder = self._folder(models_dir)
        try:
            record = json.loads((folder / COMPLETE).read_text())
            whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
            commit = str(record["commit"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole, commit = False, ""
        if not whole:
            state = f"is not whole at {folder}" if folder.exists() else "is missing"
            msg = f"model {self.name} {state}: run `vitrina models fetch {self.name}`"
            raise ModelMissingError(msg)
        if _is_commit(self.revision) and commit != self.revision:
            msg = f"model {self.name} at {folder} is of another revision: run `vitrina models fetch {self.name}`"
            raise ModelMissingError(msg)
        return folder / self.file

    def commit(self, models_dir: Path) -> str:
        """Return the commit that was fetched. Raises `ModelMissingError`."""
        self.find(models_dir)
        return str(json.loads((self._folder(models_dir) / COMPLETE).read_text())["commit"])

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
                HFValidationError,
                OfflineModeIsEnabled,
                RepositoryNotFoundError,
                RevisionNotFoundError,
            )
        except ImportError:
            raise UsageError("models of the hub need huggingface-hub: install vitrina[production]") from None
        folder = self._folder(models_dir)
        try:
            return self._fetch(folder, huggingface_hub)
        except OfflineModeIsEnabled:
            raise UsageError(f"cannot fetch {self.origin}: offline mode is on: unset HF_HUB_OFFLINE") from None
        except GatedRepoError:
            msg = f"{self.repo} wants its terms accepted: do so on its page, set HF_TOKEN, then fetch again"
            raise UsageError(msg) from None
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise UsageError(f"the hub has no {self.origin}: check the id, or set HF_TOKEN for a private one") from None
        except (OSError, httpx2.HTTPError) as error:
            first = str(error).partition("\n")[0]
            raise UsageError(f"cannot bring {self.origin} to {folder}: {first}: see to it, then fetch again") from None

    def _folder(self, models_dir: Path) -> Path:
        return models_dir / (self.folder or self.name)

    def _fetch(self, folder: Path, hub: Any) -> Path:
        info = hub.HfApi().model_info(self.repo, revision=self._pinned(folder), files_metadata=True)
        kind = (getattr(info, "config", None) or {}).get("model_type")
        if kind in _OTHER_LAYOUTS and not self.file:
            raise UsageError(f"{self.origin} is {_OTHER_LAYOUTS[kind]}")
        files = self._choose({file.rfilename: int(file.size or 0) for file in info.siblings})
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in files.items():
            if (folder / name).is_file() and (folder / name).stat().st_size != size:
                (folder / name).unlink()
        self._check_room(folder, files)
        hub.snapshot_download(self.repo, revision=info.sha, local_dir=folder, allow_patterns=list(files))
        self._check(folder, {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}, files)
        record = {"name": self.name, "repo": self.repo, "revision": self.revision, "commit": info.sha, "files": files}
        temporary = folder / f".{COMPLETE}"
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(folder / COMPLETE)
        return folder / self.file

    def _pinned(self, folder: Path) -> str:
        """Return the commit that an earlier fetch of this revision found, or else the revision: a branch may have moved since."""
        try:
            record = json.loads((folder / COMPLETE).read_text())
            same = (record["repo"], record["revision"]) == (self.repo, self.revision)
            return str(record["commit"]) if same else self.revision
        except (OSError, ValueError, KeyError, TypeError):
            return self.revision

    def _check_room(self, folder: Path, files: Mapping[str, int]) -> None:
        # Begun downloads lie in the folder too, and count for what is there.
        have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        need, room = sum(files.values()) - have, shutil.disk_usage(folder).free
        if need > room:
            msg = f"{self.origin} needs {need / 1e9:.1f} GB more and {folder} has {room / 1e9:.1f}: set VITRINA_MODELS_DIR"
            raise UsageError(msg)

    def _check(self, folder: Path, published: Mapping[str, str], files: Iterable[str]) -> None:
        """Compare large files with the SHA-256 that the hub gives for them: once, when they come."""
        for name in files:
            if name in published:
                with (folder / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != published[name]:
                    (folder / name).unlink()
                    raise ModelCorruptError(f"{name} of {self.origin} came damaged (wrong SHA-256): fetch again")

    def _choose(self, files: Mapping[str, int]) -> dict[str, int]:
        """Return what to fetch of a repository's files, with their sizes. Raises `UsageError`."""
        kept = {name: size for name, size in files.items() if not _matches(name, _UNUSED) and _inside(name)}
        if self.file:
            if self.file not in kept:
                raise UsageError(f"{self.repo}@{self.revision} holds no {self.file}: correct its path")
            return {self.file: kept[self.file]}
        pipeline = "model_index.json" in kept
        parts = sorted({name.rpartition("/")[0] for name in kept}) if pipeline else [""]
        weights: list[str] = []
        for part in parts:
            own = [name for name in kept if name.rpartition("/")[0] == part]
            sets = [
                [name for name in own if _matches(name, patterns)] for patterns in (_PIPELINE if pipeline else _NETWORK)
            ]
            chosen = next((names for names in sets if names), [])
            if not chosen and part != _OPTIONAL and part and _matches_any(own, ("*.bin",)):
                msg = f"{self.origin} holds {part} only in PyTorch's own format: choose a revision with safetensors"
                raise UsageError(msg)
            weights += chosen
        if not weights:
            checkpoints = [name for name in kept if _matches(name, _CHECKPOINT)]
            if len(checkpoints) == 1:
                return {checkpoints[0]: kept[checkpoints[0]]}
            if checkpoints:
                some = ", ".join(checkpoints[:5])
                raise UsageError(
                    f"{self.origin} holds several checkpoints ({some}): name one, {self.origin}:{checkpoints[0]}"
                )
            raise UsageError(
                f"{self.origin} holds no weights that can be read here: choose a revision with safetensors"
            )
        return {name: size for name, size in kept.items() if name in weights or _matches(name, TEXTS)}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _matches_any(names: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(_matches(name, patterns) for name in names)


def _inside(name: str) -> bool:
    # The hub refuses such names; a mirror of it may not.
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
