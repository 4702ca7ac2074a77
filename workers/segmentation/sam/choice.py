"""Which of a photo's masks are the product. Needs no network of its own.

Every candidate is weighed by what it looks like alone: its quality in the model's own eyes, its size, its place and its contact with the
photo's border. A map of evidence, from a saliency prior or from those weights, says how likely each pixel is the product's. The candidate
that agrees best with the evidence is taken, and what else the evidence holds for a part of the product, or for another one like it,
is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import cv2
import numpy as np

from shared.errors import NoProductError
from workers.segmentation.gates import border_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]

BACKDROP_BORDER = 0.5
"""A candidate that covers more of the photo's border is a backdrop, whatever speaks for it."""
SEED_EDGE = 10
"""Pixels of the photo from its left edge within which the original script's background begins."""

_BORDER = 0.2, 0.5
# Part of the photo's border that a candidate may cover without doubt, and that leaves no hope.
_RIM = 0.3, 0.5
# The same for the part of its own outline that lies on the border: a corner of a floor has half, a product on the lower edge a quarter.
_QUALITY = 0.7, 0.95
# Predicted IoU times stability that counts as nothing, and as full. What passes the filters has at least 0.84.
_POOR = 0.05
# Least weight of quality: where the recipe lets doubtful masks pass, the best of them is still an answer.
_SMALL = 0.003
# Part of the photo's area at which size counts half.
_LIKELY = 0.5
# Evidence above which a further candidate belongs to the product.
_TOUCHING = 0.05
# Part of a candidate's outline along the product that makes it a part of it rather than a neighbour; a handle has little.
_TWIN = 0.5
# Least ratio of areas of two equal products.
_SHARED = 0.3
# Overlap with what is chosen already, as a part of the smaller of the two, beyond which a candidate is another outline of the same
# thing, or of it with its shadow, and no addition to it.
_WORTH = 0.003
# Least growth of the product by a further candidate: finer detail lies in the edge's own error.
_STARTS = 8
# Candidates, best first, that are tried as the main one.
_SIMPLE = 0.98
# Worth of an answer for each further member: of two that agree alike, the one with fewer is taken.
_SAME = 0.9
# Overlap (IoU) from which two masks are the same answer.


@dataclass(frozen=True, slots=True)
class Choice:
    """The product among the candidates."""

    members: tuple[int, ...]
    """Candidates whose union it is, the main one first."""
    score: float
    """0 to 1."""
    runner_up: float
    """Score of the best answer that is another mask; 0 where there is none."""
    grounded: bool = True
    """False where neither a prior nor a backdrop told the product from what stands beside it: then the best single candidate was taken."""

    @property
    def lead(self) -> float:
        """Of the score over the runner-up's."""
        return self.score - self.runner_up


def choose(masks: Flags, predicted_iou: Floats, stability: Floats, prior: Floats | None = None) -> Choice:
    """Choose the product's masks.

    `masks` is candidates x height x width, at a few hundred pixels a side; `predicted_iou` and `stability` are 0 to 1 for each; `prior`,
    height x width, 0 to 1, is how likely each pixel is the product's. Raises `NoProductError` when no candidate can be a product.
    """
    looks = _Looks.of(masks, predicted_iou, stability)
    if not (looks.weight > 0).any():
        raise NoProductError(
            "no mask of the photo can be a product: check the photo, give points or a box, or supply a mask"
        )
    evidence = looks.evidence(masks) if prior is None else prior
    grounded = prior is not None or bool((looks.backdrop >= 1).any())
    alone = looks.weight * np.array([_agreement(mask, evidence) for mask in masks], np.float32)
    answers = [_Answer([index], float(score), masks[index]) for index, score in enumerate(alone)]
    starts = [index for index in np.argsort(-alone, kind="stable")[:_STARTS] if alone[index] > 0]
    for start in starts if grounded else ():
        members = _grow(int(start), masks, looks, evidence, strict=prior is None)
        union = cast("Flags", masks[members].any(axis=0))
        score = float(looks.weight[start]) * _agreement(union, evidence) * _SIMPLE ** (len(members) - 1)
        answers.append(_Answer(members, score, union))
    best = max(answers, key=lambda answer: answer.score)
    rivals = [answer.score for answer in answers if _overlap(answer.mask, best.mask) < _SAME]
    return Choice(tuple(best.members), round(best.score, 4), round(max(rivals, default=0.0), 4), grounded)


def seed_background(boxes: Floats, scale: float) -> int:
    """Return which candidate the original script takes for the *background*: the first if its box begins at the left edge, else the second.

    `boxes` is candidates x 4 (left, top, right, bottom), best first; times `scale` they are pixels of the photo. Raises `NoProductError`.
    """
    first = 0 if len(boxes) and boxes[0, 0] * scale < SEED_EDGE else 1
    if first >= len(boxes):
        raise NoProductError("the photo has too few masks for `choice: seed`: take `choice: product`")
    return first


class _Answer(NamedTuple):
    """One way to say which candidates are the product."""

    members: list[int]
    score: float
    mask: Flags


@dataclass(frozen=True, slots=True)
class _Looks:
    """What each candidate looks like alone."""

    weight: Floats
    """How likely it is a product, 0 to 1."""
    area: Floats
    """Part of the photo."""
    backdrop: Floats
    """How likely it is a backdrop, 0 to 1."""

    @classmethod
    def of(cls, masks: Flags, predicted_iou: Floats, stability: Floats) -> _Looks:
        area = masks.mean(axis=(1, 2), dtype=np.float32)
        border = np.array([border_part(mask) for mask in masks], np.float32)
        rim = np.array([_rim(mask) for mask in masks], np.float32)
        backdrop = np.maximum(_between(border, _BORDER), _between(rim, _RIM))
        backdrop[border > BACKDROP_BORDER] = 1
        quality = np.maximum(_between(predicted_iou * stability, _QUALITY), np.float32(_POOR))
        size = area / (area + np.float32(_SMALL))
        center = np.array([_centrality(mask) for mask in masks], np.float32)
        return cls(quality * size * (1 - backdrop) * (1 + center) / 2, area, backdrop)

    def evidence(self, masks: Flags) -> Floats:
        """Say for each pixel how likely it is the product's: as likely as the best candidate that holds it, unless a backdrop holds it too."""
        product = (masks * (self.weight / self.weight.max())[:, None, None]).max(axis=0)
        backdrop = (masks * self.backdrop[:, None, None]).max(axis=0)
        return cast("Floats", (product * (1 - backdrop)).astype(np.float32))


def _grow(main: int, masks: Flags, looks: _Looks, evidence: Floats, *, strict: bool) -> list[int]:
    """Add to the main candidate the rest of the product, and others of its kind; returns the members, the main one first.

    With `strict`, where only the candidates' own looks speak, a candidate apart from the product must be its equal.
    """
    members, union = [main], masks[main].copy()
    left = [int(index) for index in np.argsort(-looks.weight, kind="stable") if looks.weight[index] > 0]
    changed = True
    while changed:  # a part may touch the product only through another
        changed = False
        for index in list(left):
            mask = masks[index]
            new = mask & ~union
            count, whole, size = int(new.sum()), int(mask.sum()), int(union.sum())
            if whole - count > _SHARED * min(whole, size) or count < _WORTH * size:
                left.remove(index)
            elif float(evidence[new].mean()) > _LIKELY and (
                not strict or looks.area[index] > _TWIN * looks.area[main] or _contact(mask, union) > _TOUCHING
            ):
                members.append(index)
                union |= mask
                left.remove(index)
                changed = True
    return members


def _agreement(mask: Flags, evidence: Floats) -> float:
    """Return the overlap (IoU) of a mask with a soft map."""
    common = float(evidence[mask].sum())
    return common / max(1e-6, float(mask.sum()) + float(evidence.sum()) - common)


def _overlap(one: Flags, other: Flags) -> float:
    return float((one & other).sum() / max(1, int((one | other).sum())))


def _between(values: Floats, limits: tuple[float, float]) -> Floats:
    low, high = limits
    return cast("Floats", np.clip((values - low) / (high - low), 0, 1).astype(np.float32))


def _rim(mask: Flags) -> float:
    """Return the part of a mask's outer outline that lies on the photo's border."""
    filled = _filled(mask)
    inner = cv2.erode(filled.view(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    outline = filled & (inner == 0)
    on_border = outline.copy()
    on_border[1:-1, 1:-1] = False
    return float(on_border.sum() / max(1, int(outline.sum())))


def _filled(mask: Flags) -> Flags:
    """Fill a mask's holes."""
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled.view(np.bool_)


def _contact(mask: Flags, union: Flags) -> float:
    """Return the part of a mask's surroundings that belongs to a union."""
    around = (cv2.dilate(mask.view(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~mask
    return float((around & union).sum() / max(1, int(around.sum())))


def _centrality(mask: Flags) -> float:
    """Return how near a mask's middle is to the photo's: 1 in the centre, 0 in a corner."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return 0.0
    height, width = mask.shape
    across, down = (columns.mean() + 0.5) / width - 0.5, (rows.mean() + 0.5) / height - 0.5
    return float(1 - np.hypot(across, down) / np.hypot(0.5, 0.5))
