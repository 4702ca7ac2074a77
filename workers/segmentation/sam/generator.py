"""Every mask of a batch of photos: segment-anything's automatic masks, for many photos at once and with little waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
    is_box_near_crop_edge,
)
from torch.nn import functional
from torchvision.ops import batched_nms  # type: ignore[import-untyped] # ships no types

from workers.segmentation.sam.views import View

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from workers.segmentation.sam.networks import Networks
    from workers.segmentation.sam.prompts import Prompt

VIEWS = 16
"""Encoded together at most, so that crops do not multiply the memory that the encoder takes."""
POINTS = 512
"""Decoded together on a GPU, of two photos at 16 points a side: each changes a picture of its own, 10 MB in half precision at the published sizes."""
CPU_POINTS = 32
"""Decoded together on a CPU, 21 MB each: there is no device to wait for, and larger pieces only leave its caches."""
MASKS = 64
"""Measured together, of one photo or of several of one shape, at 4 MB and a few copies each."""
OFFSET = 1.0
"""How far from zero, in logits, the two cuts of the stability score lie; segment-anything's own default."""


class Grid(NamedTuple):
    """What to look for, and what to keep; see the recipe's section."""

    points_per_side: int
    min_predicted_iou: float
    min_stability: float
    max_overlap: float


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one photo: those from smaller crops first, then by predicted IoU."""

    views: tuple[View, ...]
    logits: NDArray[np.float16]
    """masks x rows x columns, of each mask's whole square input; above zero is inside."""
    view: NDArray[np.int64]
    """Index of each mask's view."""
    boxes: NDArray[np.float32]
    """masks x 4: left, top, right, bottom, in pixels of the frame."""
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]


class _Found(NamedTuple):
    """Masks on the device, one row each."""

    logits: Tensor
    view: Tensor
    boxes: Tensor
    predicted_iou: Tensor
    stability: Tensor

    def take(self, rows: Tensor) -> _Found:
        """Return the rows of these numbers; flags in their place would make every part wait for the device."""
        return _Found(*(part.index_select(0, rows) for part in self))

    @classmethod
    def join(cls, pieces: Sequence[_Found]) -> _Found:
        return cls(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


class Generator:
    """Finds masks with loaded networks. To be used in one thread."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self.side = networks.encoder.side
        """Pixels of the encoder's square input."""
        self._device = networks.device
        with torch.inference_mode():
            self._positions = networks.prompts.get_dense_pe()[0].flatten(1).T.contiguous()

    def warm_up(self, count: int = 1) -> None:
        """Look at blank photos, so that the first real ones do not wait for the device's preparations."""
        view = View(np.zeros((self.side, self.side, 3), np.uint8), (0, 0, self.side, self.side), (self.side, self.side))
        self.everything([[view]] * count, Grid(1, 0.0, 0.0, 1.0))

    @torch.inference_mode()
    def everything(self, photos: Sequence[Sequence[View]], grid: Grid) -> list[Masks]:
        """Find the masks of each photo, shown as its views; what segment-anything's `SamAutomaticMaskGenerator` keeps."""
        views = [view for photo in photos for view in photo]
        owners = [index for index, photo in enumerate(photos) for _ in photo]
        pictures = self._encode(views)
        prompts = self._grid_prompts(views, grid.points_per_side)
        together = POINTS if self._device.type == "cuda" else CPU_POINTS
        pieces = _chunks(len(views), prompts.shape[1], together)
        chunks = [self._search(pictures, prompts, views, some, grid) for some in pieces]
        found = self._distinct(_Found.join(chunks), views, owners, grid.max_overlap)
        owner = self._tensor(owners)[found.view]
        first = np.cumsum([0, *(len(photo) for photo in photos)])
        owner_host, *parts = self._fetch(owner, *found)
        answers = []
        for index, photo in enumerate(photos):
            logits, view, boxes, predicted_iou, stability = (part[owner_host == index] for part in parts)
            answers.append(Masks(tuple(photo), logits, view - first[index], boxes, predicted_iou, stability))
        return answers

    @torch.inference_mode()
    def prompted(
        self, views: Sequence[View], prompts: Sequence[Prompt], sizes: Sequence[tuple[int, int]]
    ) -> list[Masks]:
        """Answer one prompt for each photo, shown as one view, best predicted IoU first; the prompts share their shape.

        `sizes` are the photos' widths and heights, which the prompts' pixels count in.
        """
        points, boxes = [], []
        for view, prompt, size in zip(views, prompts, sizes, strict=True):
            scale = np.array(view.pixels.shape[1::-1]) / size
            points.append([(x * scale[0], y * scale[1]) for x, y, _ in prompt.points])
            boxes.append(np.tile(scale, 2) * (prompt.box or 0))
        labels = [[label for _, _, label in prompt.points] for prompt in prompts]
        count, has_box = prompts[0].shape
        tokens, _ = self._networks.prompts(
            points=(self._tensor(points).float(), self._tensor(labels)) if count else None,
            boxes=self._tensor(np.array(boxes)).float() if has_box else None,
            masks=None,
        )
        decoder = self._networks.decoder
        scores, masks, pictures = decoder(self._encode(views), self._positions, tokens[:, None])
        scores, order = scores.sort(descending=True, stable=True)
        logits = decoder.draw(masks, pictures).take_along_dim(order[..., None, None], 1)
        measured = [self._measure(logits[index], view) for index, view in enumerate(views)]
        found = self._fetch(logits.half(), scores, *(torch.stack(parts) for parts in zip(*measured, strict=True)))
        return [
            Masks((view,), each, np.zeros(len(each), np.int64), boxes, score, stability)
            for view, each, score, stability, boxes in zip(views, *found, strict=True)
        ]

    def _tensor(self, values: Sequence[object] | NDArray[np.generic]) -> Tensor:
        return self._send(torch.as_tensor(values))

    def _send(self, values: Tensor) -> Tensor:
        """Bring values to the device without waiting for what it still does: only from locked memory can it fetch them by itself."""
        if self._device.type != "cuda":
            return values
        return (values if values.is_pinned() else values.pin_memory()).to(self._device, non_blocking=True)

    def _fetch(self, *parts: Tensor) -> list[NDArray[Any]]:
        """Bring values from the device, all with one wait."""
        if self._device.type != "cuda":
            return [part.numpy() for part in parts]
        hosts = [
            torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True) for part in parts
        ]
        torch.cuda.current_stream(self._device).synchronize()
        return [host.numpy() for host in hosts]

    def _encode(self, views: Sequence[View]) -> Tensor:
        """Return the embeddings of the views, count x places x channels, with that of "no mask" added."""
        parts = []
        for first in range(0, len(views), VIEWS):
            some = views[first : first + VIEWS]
            locked = self._device.type == "cuda"
            photos = torch.zeros(len(some), self.side, self.side, 3, dtype=torch.uint8, pin_memory=locked)
            for square, view in zip(photos.numpy(), some, strict=True):
                height, width = view.pixels.shape[:2]
                square[:height, :width] = view.pixels
            sizes = self._tensor([view.pixels.shape[:2] for view in some])
            parts.append(self._networks.encoder(self._send(photos), sizes))
        pictures = torch.cat(parts).flatten(2).transpose(1, 2)
        return cast("Tensor", pictures + self._networks.prompts.no_mask_embed.weight)

    def _grid_prompts(self, views: Sequence[View], points_per_side: int) -> Tensor:
        """Return the tokens of a grid of points over each view, views x points x tokens x channels."""
        unit = build_point_grid(points_per_side)
        sizes = np.array([view.pixels.shape[1::-1] for view in views])
        points = self._tensor((unit * sizes[:, None]).astype(np.float32)).flatten(0, 1)[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.int64, device=self._device)
        tokens, _ = self._networks.prompts(points=(points, labels), boxes=None, masks=None)
        return cast("Tensor", tokens.unflatten(0, (len(views), -1)))

    def _search(
        self, pictures: Tensor, prompts: Tensor, views: Sequence[View], chunk: tuple[slice, slice], grid: Grid
    ) -> _Found:
        """Decode some points of some views and return the masks worth keeping. Waits for the device twice: for which are good, and for which stay."""
        some, points = chunk
        decoder = self._networks.decoder
        asked = prompts[some, points]
        scores, tokens, changed = decoder(pictures[some], self._positions, asked)
        good = (
            scores > grid.min_predicted_iou if grid.min_predicted_iou > 0 else torch.ones_like(scores, dtype=torch.bool)
        )
        rows, masks = good.nonzero().cpu().unbind(1)
        owner = some.start + rows // asked.shape[1]
        parts = list(_parts(owner, views))
        if not parts:
            return self._nothing()
        # A row is drawn once for all its masks.
        drawn = [rows[part].unique(return_inverse=True) for part in parts]
        lists = [
            (draw, place, masks[part], rows[part], owner[part])
            for part, (draw, place) in zip(parts, drawn, strict=True)
        ]
        sent = iter(
            self._send(torch.cat([each for row in lists for each in row])).split(
                [len(each) for row in lists for each in row]
            )
        )
        found, keep = [], []
        for part in parts:
            draw, place, mask, row, number = (next(sent) for _ in range(5))
            view = views[int(owner[part[0]])]
            logits = decoder.draw(tokens[draw], changed[draw])[place, mask]
            stability, boxes = self._measure(logits, view)
            stays = torch.ones_like(stability, dtype=torch.bool)
            if view.box != (0, 0, *view.frame):
                stays = ~is_box_near_crop_edge(boxes, view.box, (0, 0, *view.frame))
            if grid.min_stability > 0:
                stays &= stability >= grid.min_stability
            keep.append(stays)
            found.append(_Found(logits.half(), number, boxes.float(), scores[row, mask], stability.nan_to_num()))
        return _Found.join(found).take(torch.cat(keep).nonzero()[:, 0])

    def _measure(self, logits: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Return the stability and the boxes (left, top, right, bottom, in pixels of the view's part of the frame) of a view's masks."""
        left, top, right, bottom = view.box
        height, width = view.pixels.shape[:2]
        large = functional.interpolate(logits[:, None], (self.side, self.side), mode="bilinear")
        large = large[..., :height, :width]
        if (height, width) != (bottom - top, right - left):
            large = functional.interpolate(large, (bottom - top, right - left), mode="bilinear")
        return calculate_stability_score(large[:, 0], 0.0, OFFSET), batched_mask_to_box(large[:, 0] > 0)

    def _distinct(self, found: _Found, views: Sequence[View], owners: Sequence[int], max_overlap: float) -> _Found:
        """Drop duplicates, first within each view, then among the views of each photo; boxes come out in pixels of the frame."""
        keep = batched_nms(found.boxes, found.predicted_iou, found.view, max_overlap)
        corners = self._tensor([view.box for view in views])
        crops = len(set(owners)) < len(views)
        if crops:  # in the order of the crops, which decides between masks from crops of one size
            keep = keep[found.view[keep].argsort(stable=True)]
        found = found.take(keep)
        corner = corners[found.view]
        found = found._replace(boxes=found.boxes + corner[:, [0, 1, 0, 1]])
        if not crops:
            return found
        area = (corner[:, 2] - corner[:, 0]) * (corner[:, 3] - corner[:, 1])
        owner = self._tensor(owners)[found.view]
        return found.take(batched_nms(found.boxes, 1 / area, owner, max_overlap))

    def _nothing(self) -> _Found:
        """Return no masks, so that a batch without any has its shapes too."""
        low = self.side // self._networks.sizes.patch * 4
        numbers = torch.zeros(0, device=self._device)
        return _Found(
            torch.zeros(0, low, low, dtype=torch.half, device=self._device),
            numbers.long(),
            torch.zeros(0, 4, device=self._device),
            numbers,
            numbers,
        )


def _parts(owner: Tensor, views: Sequence[View]) -> Iterator[Tensor]:
    """Split masks, given by their views' numbers, into pieces of at most `MASKS` whose views have one shape and place."""
    kinds: dict[Hashable, list[int]] = {}
    for index, number in enumerate(owner.tolist()):
        view = views[number]
        kinds.setdefault((view.pixels.shape, view.box, view.frame), []).append(index)
    for members in kinds.values():
        yield from torch.tensor(members).split(MASKS)


def _chunks(views: int, points: int, together: int) -> Iterator[tuple[slice, slice]]:
    """Cut views x points into pieces of at most so many `together`, whole views where they fit."""
    step = max(1, together // points)
    for first in range(0, views, step):
        for point in range(0, points, together):
            yield slice(first, min(first + step, views)), slice(point, point + together)
