"""Sample photos come from an installed package, under a photographer's names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from producer.samples import SAMPLES, write_samples
from shared.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_every_sample_is_written_as_a_readable_jpeg(tmp_path: Path) -> None:
    """No sample is missing from the package, and nothing is downloaded."""
    pytest.importorskip("skimage")
    assert write_samples(tmp_path / "photos") == []
    assert {path.name for path in (tmp_path / "photos").iterdir()} == set(SAMPLES)
    for path in (tmp_path / "photos").iterdir():
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert min(image.size) >= 150


def test_an_own_photo_is_not_overwritten(tmp_path: Path) -> None:
    """A file that is there under a sample's name stays."""
    pytest.importorskip("skimage")
    (tmp_path / "cat.jpg").write_bytes(b"mine")
    write_samples(tmp_path)
    assert (tmp_path / "cat.jpg").read_bytes() == b"mine"


def test_a_sample_that_the_package_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may carry fewer; the others are written."""
    pytest.importorskip("skimage")
    monkeypatch.setitem(SAMPLES, "vase.jpg", ("vase.png", (0, 0, 9, 9)))
    assert write_samples(tmp_path) == ["vase.jpg"]
    assert {path.name for path in tmp_path.iterdir()} == set(SAMPLES) - {"vase.jpg"}


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(UsageError, match=r"vitrina\[demo\]"):
        write_samples(tmp_path)
