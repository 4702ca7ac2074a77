"""The demo's folders: what it made of one source never mixes with what it made of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from producer.cli.services import DEMO, demo_folder

if TYPE_CHECKING:
    import pytest


def test_every_source_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Folders of one name in two places are two, one folder by two paths is one, and the samples are apart."""
    monkeypatch.chdir(tmp_path)
    places = ["photos", "summer/photos", "/srv/photos", "s3://shop/photos", "s3://shop", None]
    assert len({demo_folder(place) for place in places}) == len(places)
    assert demo_folder("photos") == demo_folder("./photos/") == demo_folder(str(tmp_path / "photos"))
    assert all(demo_folder(place).parent == DEMO for place in places)
    assert demo_folder("summer/photos").name.startswith("photos-")
    assert demo_folder(None) == Path("vitrina-demo/samples")
