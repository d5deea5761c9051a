"""The model of `cimrl_jax/nn` in PyTorch: encoders `vit` and `text_transformer`, co-attention, causal layers. Written as one would write it there:
fused query-key-value maps, `scaled_dot_product_attention`, one batch axis.

Every example has at least one valid slot of every modality (ours also takes absent ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Slots(NamedTuple):
    """`[b, n, d]` and what of it is valid `[b, n]`."""

    values: Tensor
    mask: Tensor


class Outputs(NamedTuple):
    logits: Tensor
    heads: dict[str, Tensor]
    codes: dict[str, Tensor]


class Attention(nn.Module):
    """Self-attention, or given `other` attention to it."""

    def __init__(self, dim: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        if cross:
            self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        else:
            self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, width = x.shape
        return x.view(b, n, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, mask: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            (query,), (key, value) = self.split(self.query(x), 1), self.split(self.key_value(other), 2)
        else:
            query, key, value = self.split(self.query_key_value(x), 3)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(functional.gelu(self.widen(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, *, cross: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(dim), Attention(dim, heads)
        if cross:
            self.cross_norm, self.other_norm, self.cross = _norm(dim), _norm(dim), Attention(dim, heads, cross=True)
        self.mlp_norm, self.mlp = _norm(dim), Mlp(dim, hidden)

    def forward(self, x: Tensor, mask: Tensor, other: Tensor | None = None, other_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        if other is not None and other_mask is not None:
            x = x + self.cross(self.cross_norm(x), other_mask, self.other_norm(other))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Slots -> tokens; `words` is the number of words, 0 for slots that are mapped to `dim` first."""

    def __init__(self, dim: int, heads: int, hidden: int, *, count: int, width: int, depth: int, words: int = 0) -> None:
        super().__init__()
        if words:
            self.words, self.norm = nn.Parameter(torch.empty(words, dim)), _norm(dim)
        else:
            self.inward = nn.Linear(width, dim)
        self.mapped = bool(words)
        self.positions = nn.Parameter(torch.empty(count, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))

    def forward(self, slots: Slots) -> Slots:
        x = torch.where(slots.mask[..., None], slots.values, 0.0)
        x = self.norm(x + self.positions) if self.mapped else self.inward(x) + self.positions
        for block in self.blocks:
            x = block(x, slots.mask)
        return Slots(x, slots.mask)


class Fusion(nn.Module):
    """The query's tokens attend to the others' in every layer but each `connect_every`-th, which is self-attention over all."""

    def __init__(self, dim: int, heads: int, hidden: int, *, names: tuple[str, ...], query: str, layers: int, connect_every: int) -> None:
        super().__init__()
        self.names, self.query = names, query
        self.connected = [bool(connect_every) and (i + 1) % connect_every == 0 for i in range(layers)]
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, cross=not connected) for connected in self.connected)

    def forward(self, tokens: Mapping[str, Slots]) -> Slots:
        x = {m: tokens[m].values for m in self.names}
        others, mask = [m for m in self.names if m != self.query], torch.cat([tokens[m].mask for m in self.names], 1)
        for connected, block in zip(self.connected, self.blocks, strict=True):
            if connected:
                joint = block(torch.cat([x[m] for m in self.names], 1), mask)
                x = dict(zip(self.names, joint.split([x[m].shape[1] for m in self.names], 1), strict=True))
            else:
                source, source_mask = (torch.cat(parts, 1) for parts in ([x[m] for m in others], [tokens[m].mask for m in others]))
                x[self.query] = block(x[self.query], tokens[self.query].mask, source, source_mask)
        return Slots(torch.cat([x[m] for m in self.names], 1), mask)


class Causal(nn.Module):
    """Tokens -> codes -> heads."""

    def __init__(self, dim: int, heads: int, hidden: int, *, names: tuple[str, ...], classes: int, layers: int) -> None:
        super().__init__()
        self.parts = (*names, "shared")
        self.stacks = nn.ModuleDict({p: nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers)) for p in self.parts})
        self.norms = nn.ModuleDict({p: _norm(dim) for p in self.parts})
        self.heads = nn.ModuleDict({p: nn.Linear(dim, classes) for p in self.parts})
        self.heads["combined"] = nn.Linear(dim * len(self.parts), classes)
        self.project_in, self.project_out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def encode(self, read: Mapping[str, Slots]) -> dict[str, Tensor]:
        codes = {}
        for part in self.parts:
            x, mask = read[part]
            for block in self.stacks[part]:  # type: ignore[union-attr]
                x = block(x, mask)
            valid = mask[..., None]
            mean = torch.where(valid, x, 0.0).float().sum(1) / valid.sum(1).clamp(min=1)
            codes[part] = self.norms[part](mean)
        return codes

    def decide(self, codes: Mapping[str, Tensor]) -> Outputs:
        """In float32, as ours."""
        with torch.autocast(codes["shared"].device.type, enabled=False):
            parts = {p: codes[p].float() for p in self.parts}
            heads = {p: self.heads[p](code) for p, code in parts.items()}
            heads["combined"] = self.heads["combined"](torch.cat(list(parts.values()), -1))
            projection = self.project_out(functional.gelu(self.project_in(parts["shared"]), approximate="tanh"))
        return Outputs(heads["combined"], heads, {**parts, "projection": projection})


class Network(nn.Module):
    """All of it, for one image and one text modality of these names."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        hidden: int,
        classes: int,
        encoders: Mapping[str, Mapping[str, Any]],
        query: str,
        fusion_layers: int,
        connect_every: int,
        causal_layers: int,
    ) -> None:
        super().__init__()
        sizes, names = (dim, heads, hidden), tuple(sorted(encoders))
        self.encoders = nn.ModuleDict({m: Encoder(*sizes, **encoders[m]) for m in names})
        self.fusion = Fusion(*sizes, names=names, query=query, layers=fusion_layers, connect_every=connect_every)
        self.causal = Causal(*sizes, names=names, classes=classes, layers=causal_layers)

    def embed(self, m: str, inputs: Tensor) -> Slots:
        """Pixels uint8 `[b, h, w, c]` -> patches; word ids `[b, l]`, 0 for padding, -> their embeddings."""
        encoder: Any = self.encoders[m]
        if encoder.mapped:
            mask = inputs != 0
            return Slots(torch.where(mask[..., None], functional.embedding(inputs, encoder.words), 0.0), mask)
        b, h, w, c = inputs.shape
        p = round((encoder.inward.in_features / c) ** 0.5)
        pixels = (inputs.float() / 255 - 0.5) / 0.5
        patches = pixels.view(b, h // p, p, w // p, p, c).transpose(2, 3).reshape(b, -1, p * p * c)
        return Slots(patches, torch.ones(patches.shape[:2], dtype=torch.bool, device=inputs.device))

    def encode(self, slots: Mapping[str, Slots]) -> dict[str, Tensor]:
        tokens = {m: self.encoders[m](slots[m]) for m in slots}
        return self.causal.encode({**tokens, "shared": self.fusion(tokens)})


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)
