"""Segment Anything's mask decoder, for many prompts of many pictures at once.

The numbers are those of segment-anything's `MaskDecoder`; the order of work differs. A picture's own part of the first layer is done once
for all its prompts, and masks are drawn only for the prompts that are worth it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder
    from torch import Tensor


class Decoder(nn.Module):
    """Answers prompts: `forward` weighs up to three masks for each, `draw` draws them."""

    def __init__(self, decoder: MaskDecoder, precision: torch.dtype) -> None:
        """Take over the network's weights; the layers over whole pictures compute in `precision`, the small heads in float32."""
        super().__init__()
        self.transformer: Any = decoder.transformer.to(precision)
        self.upscaling: Any = decoder.output_upscaling.to(precision)
        self.score_token, self.mask_tokens = decoder.iou_token, decoder.mask_tokens
        self.score_head, self.mask_heads = decoder.iou_prediction_head, decoder.output_hypernetworks_mlps
        self._precision = precision

    def forward(self, pictures: Tensor, positions: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weigh the masks of every prompt.

        `pictures` is count x places x channels with the embedding of "no mask" added, `positions` places x channels, `prompts`
        count x prompts x tokens x channels. Returns, for the count x prompts rows in that order, the predicted IoU (rows x masks), and
        what `draw` needs: the masks' tokens (rows x masks x channels) and the picture as the prompt has changed it (rows x places x
        channels).
        """
        own = torch.cat([self.score_token.weight, self.mask_tokens.weight])
        rows = prompts.flatten(0, 1)
        asked = torch.cat([own.expand(len(rows), -1, -1), rows], 1).to(self._precision)
        tokens, picture = self._transform(asked, pictures.to(self._precision), positions.to(self._precision))
        found = tokens[:, : len(own)].float()
        # The first mask is the single answer to a prompt without doubt; a point always leaves doubt.
        scores = self.score_head(found[:, 0])[:, 1:]
        return scores, found[:, 2:], picture

    def draw(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        """Draw the masks of some rows of `forward`; logits, rows x masks x height x width, at four times the embedding's grid."""
        rows, places, channels = pictures.shape
        grid = round(places**0.5)
        large = self.upscaling(pictures.transpose(1, 2).reshape(rows, channels, grid, grid))
        # The first head belongs to the single mask.
        filters = [head(tokens[:, mask]) for mask, head in enumerate(list(self.mask_heads)[1:])]
        logits = torch.stack(filters, 1).to(self._precision) @ large.flatten(2)
        return cast("Tensor", logits.float().unflatten(2, large.shape[2:]))

    def _transform(self, asked: Tensor, pictures: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Let tokens (rows x tokens x channels) and pictures look at each other; the pictures come out one per row."""
        tokens = asked
        for layer in self.transformer.layers:
            if layer.skip_first_layer_pe:
                tokens = layer.norm1(_attend(layer.self_attn, tokens, tokens, tokens))
            else:
                placed = tokens + asked
                tokens = layer.norm1(tokens + _attend(layer.self_attn, placed, placed, tokens))
            where = pictures + positions
            seen = _attend(layer.cross_attn_token_to_image, tokens + asked, where, pictures)
            tokens = layer.norm2(tokens + seen)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            told = _tell(layer.cross_attn_image_to_token, where, tokens + asked, tokens)
            pictures = layer.norm4(pictures[:, None] + told).flatten(0, 1)
        last = self.transformer.final_attn_token_to_image
        seen = _attend(last, tokens + asked, pictures + positions, pictures)
        return self.transformer.norm_final_attn(tokens + seen), pictures


def _heads(values: Tensor, heads: int) -> Tensor:
    """Split the channels: count x length x channels to count x heads x length x channels of one."""
    return cast("Tensor", values.unflatten(2, (heads, -1)).transpose(1, 2))


def _attend(attention: Any, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Let tokens look at a picture, or at each other.

    Where there are fewer pictures than rows of tokens, the rows of one picture look at it as one long row.
    """
    heads: int = attention.num_heads
    query = attention.q_proj(tokens).reshape(len(keys), -1, attention.internal_dim)
    mixed = functional.scaled_dot_product_attention(
        _heads(query, heads), _heads(attention.k_proj(keys), heads), _heads(attention.v_proj(values), heads)
    )
    joined = mixed.transpose(1, 2).reshape(*tokens.shape[:2], attention.internal_dim)
    return cast("Tensor", attention.out_proj(joined))


def _tell(attention: Any, pictures: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Let each place of a picture look at the few tokens of each of its prompts; pictures x prompts x places x channels.

    The last projection is applied to the tokens before they are mixed, of which there are some hundred times fewer than places.
    """
    heads: int = attention.num_heads
    size: int = attention.internal_dim
    count, prompts, length = len(pictures), len(keys) // len(pictures), keys.shape[1]
    query = _heads(attention.q_proj(pictures), heads)
    key = attention.k_proj(keys).view(count, prompts * length, heads, size // heads).permute(0, 2, 3, 1)
    scores = (query @ key) * (size // heads) ** -0.5
    # pictures x heads x places x (prompts x tokens), to pictures x prompts x places x (heads x tokens)
    shares = scores.unflatten(3, (prompts, length)).softmax(4).permute(0, 3, 2, 1, 4).flatten(3)
    value = attention.v_proj(values).unflatten(2, (heads, -1))
    out = attention.out_proj.weight.unflatten(1, (heads, -1))
    told = torch.einsum("pthd,chd->phtc", value, out).flatten(1, 2)
    mixed = torch.baddbmm(attention.out_proj.bias, shares.flatten(0, 1), told)
    return cast("Tensor", mixed.unflatten(0, (count, prompts)))
