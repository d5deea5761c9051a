"""The perturbed views of `cimrl_jax/data/augment_{image,text}.py` in PyTorch, at their default options, from numbers drawn elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from cimrl_jax.data import augment_image, augment_text

IMAGE, TEXT = augment_image.Options(), augment_text.Options()


def perturb_image(images: Tensor, draws: Tensor) -> Tensor:
    """uint8 `[b, h, w, c]` and `[8, b]` in 0..1 -> another view: crop, mirroring, brightness, contrast, saturation."""
    values = images.float()
    _, h, w, _ = values.shape
    area, ratio, top, left, mirror = draws[:5]
    side = (IMAGE.crop_least + (1 - IMAGE.crop_least) * area).sqrt()
    stretch = IMAGE.aspect ** (ratio - 0.5)
    rows = _interpolation(h, (side / stretch).clamp(max=1), top, torch.zeros_like(mirror, dtype=torch.bool))
    columns = _interpolation(w, (side * stretch).clamp(max=1), left, mirror < IMAGE.flip)
    values = torch.einsum("bip,bpqc->biqc", rows, values)
    values = torch.einsum("bjq,biqc->bijc", columns, values)
    strength = torch.tensor([IMAGE.brightness, IMAGE.contrast, IMAGE.saturation], device=values.device)
    brightness, contrast, saturation = (1 + strength[:, None] * (2 * draws[5:] - 1))[:, :, None, None, None]
    values = values * brightness
    grey = (values @ torch.tensor([0.299, 0.587, 0.114], device=values.device))[..., None]
    mean = grey.mean((1, 2, 3), keepdim=True)
    values = mean + (grey + (values - grey) * saturation - mean) * contrast
    return values.round().clamp(0, 255).to(torch.uint8)


def _interpolation(size: int, extent: Tensor, offset: Tensor, mirrored: Tensor) -> Tensor:
    step = torch.arange(size, device=extent.device, dtype=torch.float32)
    start = offset * (1 - extent) * size
    where = start[:, None] + (step + 0.5) * extent[:, None] - 0.5
    where = torch.where(mirrored[:, None], where.flip(1), where).clamp(0, size - 1)
    return (1 - (where[:, :, None] - step).abs()).clamp(min=0)


def perturb_text(ids: Tensor, draws: Tensor) -> Tensor:
    """Ids `[b, l]` and `[5, b, l + 1]` in 0..1 -> another view: words inserted again, left out, two exchanged. There are no synonyms, no markers."""
    b, length = ids.shape
    coin, draws = draws[0, :, length] < TEXT.swap, draws[:, :, :length]
    real = ids > 0
    kept = real & ~(real & (draws[2] < TEXT.delete))
    most = torch.where(real, draws[2], -1.0).amax(-1, keepdim=True)
    kept = kept | ((kept.sum(-1, keepdim=True) == 0) & real & (draws[2] == most))
    inserted = real & (draws[3] < TEXT.insert)
    inserted = inserted & (inserted.cumsum(-1) <= length - kept.sum(-1, keepdim=True))

    order = torch.arange(length, device=ids.device)
    place, free, rows = (2 * order).expand(b, length), real & kept, torch.arange(b, device=ids.device)
    high = torch.where(free, draws[4], -1.0).argmax(-1)
    low = torch.where(free, draws[4], 2.0).argmin(-1)
    exchanged = place.clone()
    exchanged[rows, high], exchanged[rows, low] = place[rows, low], place[rows, high]
    place = torch.where((coin & (free.sum(-1) > 1))[:, None], exchanged, place)

    line = torch.cat([torch.where(kept, place, 2 * length), torch.where(inserted, 2 * order + 1, 2 * length)], -1)
    written = torch.cat([torch.where(kept, ids, 0), torch.where(inserted, ids, 0)], -1)
    return written.gather(-1, line.argsort(dim=-1, stable=True)[:, :length])
