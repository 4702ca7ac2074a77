"""Sets of candidate masks as a segmenter finds them: a product whole or in parts, its shadow, backdrops, and noise."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIDE = 256
CATALOGUE = Path(
    os.environ.get("VITRINA_CATALOGUE") or Path(__file__).parents[2].joinpath("../shared/data/catalogue").resolve()
)
STEMS = sorted(photo.stem for photo in CATALOGUE.glob("photos/*.jpg"))


@dataclass
class Candidates:
    """Masks with what the segmenter says of them; `add` moves each outline by about a pixel, as no mask is perfect."""

    rng: np.random.Generator
    rows: list[tuple[str, np.ndarray, float, float]] = field(default_factory=list)

    def add(self, kind: str, mask: np.ndarray, predicted_iou: tuple[float, float], stability: float = 0.96) -> None:
        """Add a mask with a predicted IoU within limits, and a stability of at least `stability`."""
        noise = cv2.GaussianBlur(self.rng.normal(0, 1, mask.shape).astype(np.float32), (0, 0), 4)
        inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3) for part in (mask, ~mask))
        moved = inside - outside + 0.5 * noise / noise.std() > 0
        if moved.sum() > 30:
            self.rows.append((kind, moved, self.rng.uniform(*predicted_iou), self.rng.uniform(stability, 0.98)))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return masks, predicted IoUs and stabilities, in no order."""
        self.rows = [self.rows[index] for index in self.rng.permutation(len(self.rows))]
        _, masks, scores, stabilities = zip(*self.rows, strict=True)
        return np.array(masks), np.array(scores, np.float32), np.array(stabilities, np.float32)

    def kinds(self, members: tuple[int, ...]) -> list[str]:
        """Name what was chosen."""
        return [self.rows[index][0] for index in members]


def ellipse(x: float, y: float, across: float, down: float) -> np.ndarray:
    """Draw an ellipse by its middle and its half axes."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray(((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 < 1)


def true_mask(stem: str) -> np.ndarray:
    """Read the true mask of a catalogue photo at the candidates' size."""
    mask = Image.open(CATALOGUE / "masks" / f"{stem}.png").convert("L")
    return np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX)) > 127


def from_catalogue(stem: str, seed: int, *, whole: bool, shadowed: bool) -> Candidates:
    """Make the candidates of a catalogue photo; with `shadowed`, one of them is the product and its shadow in one."""
    rng = np.random.default_rng([seed, *stem.encode()])
    found, mask = Candidates(rng), true_mask(stem)
    photo = Image.open(CATALOGUE / "photos" / f"{stem}.jpg").convert("RGB")
    colors = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BOX))
    if whole:  # each of several products alone
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        for piece in range(1, count):
            found.add("whole", labels == piece, (0.96, 1))
    for part in _parts(mask, colors, rng, 2 + seed % 3):
        found.add("part", part, (0.92, 0.99), 0.955)
    rows, columns = np.nonzero(mask)
    spot = rng.integers(len(rows))
    found.add("detail", ellipse(columns[spot], rows[spot], 8, 5) & mask, (0.9, 0.98), 0.95)
    width = np.ptp(columns)
    middle = columns.min() + width / 2 + rng.uniform(-0.15, 0.15) * width
    shadow = ellipse(middle, rows.max() - 2, 0.6 * width, max(5, 0.12 * width)) & ~mask
    found.add("shadow", shadow, (0.88, 0.92), 0.95)
    if shadowed:
        found.add("product and shadow", mask | shadow, (0.88, 0.93), 0.95)
    upper = np.arange(SIDE)[:, None] < rng.uniform(0.3, 0.7) * SIDE
    found.add("backdrop", ~mask, (0.95, 1))
    found.add("backdrop", ~mask & ~shadow, (0.93, 1))
    found.add("wall", ~mask & upper, (0.9, 0.98), 0.95)
    found.add("floor", ~mask & ~upper, (0.9, 0.98), 0.95)
    for _ in range(12):
        blob = ellipse(*rng.uniform(0, SIDE, 2), *rng.uniform(4, 16, 2))
        found.add("noise", blob & ~mask, (0.88, 0.95), 0.95)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros((SIDE, SIDE), np.uint8), outlines, -1, 1, cv2.FILLED) > 0
    found.add("hole", filled & ~mask, (0.95, 0.99))
    return found


def _parts(mask: np.ndarray, colors: np.ndarray, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Split a mask by colour and place."""
    rows, columns = np.nonzero(mask)
    features = np.column_stack([colors[rows, columns] / 40, columns * 6 / SIDE, rows * 6 / SIDE]).astype(np.float32)
    cv2.setRNGSeed(int(rng.integers(1 << 30)))
    stop = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 30, 1e-3)
    _, labels, _ = cv2.kmeans(features, count, np.empty(0), stop, 3, cv2.KMEANS_PP_CENTERS)
    parts = []
    for label in range(count):
        part = np.zeros_like(mask)
        part[rows, columns] = labels[:, 0] == label
        parts.append(part)
    return parts
