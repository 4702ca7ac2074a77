"""Segment Anything's image encoder on a batch of photos, with attention that never writes its table of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT
    from torch import Tensor

_MEAN = 123.675, 116.28, 103.53
_DEVIATION = 58.395, 57.12, 57.375
# ImageNet's, in levels of 0 to 255, which the network was trained with.


class Encoder(nn.Module):
    """Makes embeddings of photos."""

    _mean: Tensor
    _deviation: Tensor

    def __init__(self, vit: ImageEncoderViT, precision: torch.dtype) -> None:
        """Take over the network's weights; all but its last layers compute in `precision`."""
        super().__init__()
        self.side: int = vit.img_size
        """Pixels of the square input."""
        self.patches = vit.patch_embed
        self.positions = vit.pos_embed
        self.blocks = vit.blocks
        grid: int = vit.pos_embed.shape[1]
        for block in self.blocks:
            block.attn = Attention(block.attn, block.window_size or grid)
        self.to(precision)
        # Its norms square what they are given, which half precision cannot hold; the layers are a thousandth of the work.
        self.neck = vit.neck
        self._precision = precision
        device = vit.pos_embed.device
        self.register_buffer("_mean", torch.tensor(_MEAN, device=device)[:, None, None], persistent=False)
        self.register_buffer("_deviation", torch.tensor(_DEVIATION, device=device)[:, None, None], persistent=False)

    def forward(self, photos: Tensor, sizes: Tensor) -> Tensor:
        """Return the embeddings, count x channels x grid x grid, in single precision.

        `photos` is count x side x side x 3, uint8, each in the upper left corner; `sizes` its height and width, count x 2.
        """
        pixels = (photos.permute(0, 3, 1, 2).float() - self._mean) / self._deviation
        places = torch.arange(self.side, device=photos.device)
        inside = (places < sizes[:, :1])[:, None, :, None] & (places < sizes[:, 1:])[:, None, None, :]
        # The rim is the mean colour, not black.
        tokens = self.patches((pixels * inside).to(self._precision)) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return cast("Tensor", self.neck(tokens.permute(0, 3, 1, 2).float()))


class Attention(nn.Module):
    """Attention with decomposed relative positions, as one call of the fused kernel.

    The score of a query and a key is q·k plus q's answer for the key's row plus q's answer for its column. The answers are appended to
    the query, and to the key the two unit vectors that pick them, so that one dot product gives the sum: the 4096 x 4096 scores of
    each head, half a gigabyte a photo, are never written down.
    """

    _rows: Tensor
    _columns: Tensor
    _picks: Tensor

    def __init__(self, attention: Any, grid: int) -> None:
        """Take over the weights of segment-anything's module for squares of `grid` x `grid` patches."""
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads: int = attention.num_heads
        self._scale: float = attention.scale
        rows, columns = attention.rel_pos_h, attention.rel_pos_w
        places = torch.arange(grid, device=rows.device)
        distance = places[:, None] - places[None, :] + grid - 1
        unit = torch.eye(grid, device=rows.device)
        picks = torch.cat([unit.repeat_interleave(grid, 0), unit.repeat(grid, 1)], 1)
        self.register_buffer("_rows", rows.detach()[distance], persistent=False)
        self.register_buffer("_columns", columns.detach()[distance], persistent=False)
        self.register_buffer("_picks", picks, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the patches of each square; `tokens` and the result are count x grid x grid x channels."""
        count, grid, _, channels = tokens.shape
        size = channels // self._heads
        # 3 x count x heads x patches x size
        parts = self.qkv(tokens).view(count, grid * grid, 3, self._heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        square = query.unflatten(2, (grid, grid))
        down = torch.einsum("nhyxc,ykc->nhyxk", square, self._rows).flatten(2, 3)
        across = torch.einsum("nhyxc,xkc->nhyxk", square, self._columns).flatten(2, 3)
        # Fused kernels want equal lengths for all three, in steps of eight.
        length = size + 2 * grid
        rest = -length % 8
        empty = query.new_zeros(1).expand(count, self._heads, grid * grid, rest)
        picks = self._picks.expand(count, self._heads, -1, -1)
        mixed = functional.scaled_dot_product_attention(
            torch.cat([query * self._scale, down, across, empty], 3),
            torch.cat([key, picks, empty], 3),
            functional.pad(value, (0, length + rest - size)),
            scale=1.0,
        )[..., :size]
        joined = mixed.transpose(1, 2).reshape(count, grid, grid, channels)
        return cast("Tensor", self.proj(joined))
