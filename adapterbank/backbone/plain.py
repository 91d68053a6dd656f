"""The Audio Spectrogram Transformer as its paper writes it (Gong et al., 2021, "AST"), with the sites of this library.

Read this file first: it is the whole model, one clip length and one task at a time, with nothing done for speed.
`encode.py` computes the same function for many tasks at once and faster; the tests compare it with this file.

    x ─ rewrite, tokens ─┬─ LN1* ─┬─ q,k,v* ─ attention ─ proj* ─ after_attention ─┬─ + ─ x
                         │        └──────────────── beside_attention ──────────────┤
                         └──────────────────────── residual ───────────────────────┘
    x ─┬─ LN2* ─┬─ fc1* ─ GELU ─ fc2* ─ after_mlp ─┬─ + ─ x
       │        └──────────── beside_mlp ──────────┤
       └──────────────── residual ─────────────────┘

The attention also sees extra_tokens, which go through LN1, k and v, and extra_kv. A star marks what a task may change:
gain and bias of a LayerNorm, bias and output of a linear. `sites.py` says what each of these sites takes.

R clips of F frames and M mel bins become R rows of N tokens of width D. There are H heads of width d = D / H. A task
may add P prompts, which are tokens that it trained; K keys are those of tokens and prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from adapterbank.backbone.embedding import embed
from adapterbank.backbone.sites import NOTHING, Affine, LinearHook, Sites, gain_and_bias
from adapterbank.backbone.weights import ASTWeights, BlockWeights, FrozenLinear, Geometry


def encode(mel: Tensor, weights: ASTWeights, geometry: Geometry, sites: Sequence[Sites] = ()) -> Tensor:
    """Normalised spectrograms to tokens after the final LayerNorm. (R, F, M) -> (R, N, D).

    Args:
        sites: what a task fills in each block; empty for the AST itself.
    """
    return blocks(embed(mel, weights.embed, geometry), weights, geometry, sites)


def blocks(x: Tensor, weights: ASTWeights, geometry: Geometry, sites: Sequence[Sites] = ()) -> Tensor:
    """All blocks and the final LayerNorm, from embedded tokens on. (R, N, D) -> (R, N, D)."""
    for layer, block_weights in enumerate(weights.blocks):
        x = block(x, block_weights, geometry, sites[layer] if sites else NOTHING)  # (R, N, D)
    x = x.to(weights.norm.weight.dtype)
    return F.layer_norm(x, (geometry.width,), weights.norm.weight, weights.norm.bias, geometry.eps)  # (R, N, D)


def block(x: Tensor, weights: BlockWeights, geometry: Geometry, sites: Sites = NOTHING) -> Tensor:
    """One pre-norm transformer block. (R, N, D) -> (R, N, D); prompts that join the sequence make N larger.

    The residual stream `x` keeps its dtype. Linears multiply in the dtype in which their matrices are stored.
    """

    def norm(name: str, t: Tensor) -> Tensor:  # (..., D) -> (..., D)
        return F.layer_norm(
            t, (geometry.width,), *gain_and_bias(weights.norm(name), sites.affine.get(name)), geometry.eps
        )

    def linear(name: str, t: Tensor) -> Tensor:  # (R, N, in) -> (R, N, out)
        return _linear(t, weights.linear(name), sites.linear.get(name, ()), sites.affine.get(name))

    def appended(t: Tensor, prompts: Iterable[Tensor]) -> Tensor:  # (R, N, D), (P, D) each -> (R, N + P, D)
        rows = [p.float().expand(len(t), -1, -1) for p in prompts]  # (R, P, D): every clip is given the same
        # In fp32, because under autocast torch joins no tensors of another half precision than autocast's.
        return torch.cat((t.float(), *rows), dim=1).to(t.dtype) if rows else t

    if sites.rewrite is not None:
        x = sites.rewrite(x)  # (R, N, D)
    x = appended(x, sites.tokens)  # (R, N, D), N now with the prompts that stay

    h = norm("ln1", x)  # (R, N, D)
    seen = appended(h, (norm("ln1", prompts) for prompts in sites.extra_tokens))  # (R, N + P, D)
    q, k, v = linear("q", h), linear("k", seen), linear("v", seen)  # (R, N, D), (R, N + P, D), (R, N + P, D)
    k = appended(k, (key for key, _ in sites.extra_kv))  # (R, K, D)
    v = appended(v, (value for _, value in sites.extra_kv))  # (R, K, D)
    q, k, v = (rearrange(t, "r n (h d) -> r h n d", h=geometry.heads) for t in (q, k, v))  # (R, H, N or K, d)
    weighted = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v  # (R, H, N, K) @ v: (R, H, N, d)
    a = linear("proj", rearrange(weighted, "r h n d -> r n (h d)")).to(x.dtype)  # (R, N, D)
    if sites.after_attention is not None:
        a = sites.after_attention(a)  # (R, N, D)
    x = x + a + sum(adapter(h) for adapter in sites.beside_attention)  # (R, N, D)

    h = norm("ln2", x)  # (R, N, D)
    m = linear("fc2", F.gelu(linear("fc1", h))).to(x.dtype)  # (R, N, D), through the width of the MLP
    if sites.after_mlp is not None:
        m = sites.after_mlp(m)  # (R, N, D)
    return x + m + sum(adapter(h) for adapter in sites.beside_mlp)  # (R, N, D)


def _linear(x: Tensor, frozen: FrozenLinear, hooks: Sequence[LinearHook], own: Affine | None) -> Tensor:
    """A frozen linear, then the task's hooks in their order, then its own bias. (R, N, in) -> (R, N, out)."""
    x = x.to(frozen.weight.dtype)
    y = F.linear(x, frozen.weight, frozen.bias)  # (R, N, out)
    for hook in hooks:
        y = hook(x, y, frozen)  # (R, N, out)
    if own is not None and own.bias is not None:  # in place of the frozen bias, which is in y already: hooks see it
        y = y + (own.bias if frozen.bias is None else own.bias - frozen.bias)
    return y.to(x.dtype)
