"""What a method may plug into one block of the AST: the sites, and how two methods share them.

The drawing in `plain.py` shows where they are.

Symbols: R rows of one task and length, N tokens, P prompts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from adapterbank.backbone.weights import FrozenLinear, NormWeights
from adapterbank.errors import CompositionError

# A transform or a hook reads what it is given and never writes to it. Without gradients what it was given may be
# overwritten after it returned: copy what you want to keep. What it returns is only read.
Transform = Callable[[Tensor], Tensor]  # (R, N, D) -> (R, N, D)
# input (R, N, in), output (R, N, out), the frozen linear -> output (R, N, out)
LinearHook = Callable[[Tensor, Tensor, FrozenLinear], Tensor]


class PerToken(Protocol):
    """A transform, or a hook of a linear, that says whether it treats every token by itself.

    Saying so is optional and saves time: the last block then runs it only on the tokens that the pooling reads, usually
    two of hundreds. A torch forward hook on such a module sees no other tokens there either.

    The promise belongs to the `forward` of the class that makes it. A subclass with another `forward` makes it anew,
    or is given all tokens.
    """

    def per_token(self) -> bool:
        """Whether, built like this, no token's output depends on another token or on how many there are."""
        ...


def acts_per_token(hook: object) -> bool:
    """Whether a transform or a hook says of itself that it is `PerToken`."""
    says = declared(hook, "per_token")
    return says is not None and bool(says())


def declared(hook: object, name: str) -> Callable[..., Any] | None:
    """A hook's method `name`, such as `per_token`, if it speaks for what calling the hook does.

    None if there is no such method, or if a subclass has overridden `forward` or `__call__` since.
    """
    kind = type(hook)
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    if owner is None or any(getattr(kind, c, None) is not getattr(owner, c, None) for c in ("forward", "__call__")):
        return None
    found = getattr(hook, name)
    return found if callable(found) else None


class Affine(NamedTuple):
    """A task's own gain and bias, each (D,), in place of the frozen ones; None keeps the frozen one."""

    gain: Tensor | None = None
    bias: Tensor | None = None


def gain_and_bias(frozen: NormWeights, own: Affine | None) -> NormWeights:
    """What a LayerNorm of this task multiplies with and adds."""
    if own is None:
        return frozen
    return NormWeights(frozen.weight if own.gain is None else own.gain, frozen.bias if own.bias is None else own.bias)


@dataclass(frozen=True)
class Sites:
    """The filled sites of one block for one task.

    Attributes:
        tokens: (P, D) each; appended to the sequence before the block, where they stay and enter a mean pooling.
        extra_tokens: (P, D) each; seen as keys and values only (through LN1, k, v and the task's own changes of them).
        extra_kv: pairs of (P, D) keys and (P, D) values.
        affine: gain and bias per LayerNorm ("ln1", "ln2"), bias per linear ("q", "k", "v", "proj", "fc1", "fc2").
        linear: hooks `(input, output, frozen) -> output` per frozen linear, applied in order, before an own bias; with
            a half-precision base input and output are of its dtype.
        rewrite: one change of the whole sequence before the block, ahead of `tokens`; (R, N, D) -> (R, any, D).
        beside_attention, beside_mlp: parallel adapters on the normalised input; their outputs are added.
        after_attention, after_mlp: one sequential adapter on the sublayer's output, inside the residual. What
            these four read is fp32; under autocast of the base's own dtype it is that.
    """

    tokens: tuple[Tensor, ...] = ()
    extra_tokens: tuple[Tensor, ...] = ()
    extra_kv: tuple[tuple[Tensor, Tensor], ...] = ()
    affine: Mapping[str, Affine] = field(default_factory=dict)
    linear: Mapping[str, tuple[LinearHook, ...]] = field(default_factory=dict)
    beside_attention: tuple[Transform, ...] = ()
    beside_mlp: tuple[Transform, ...] = ()
    after_attention: Transform | None = None
    after_mlp: Transform | None = None
    rewrite: Transform | None = None

    def filled(self) -> frozenset[str]:
        """Names of the sites in use."""
        return frozenset(entry.name for entry in fields(self) if getattr(self, entry.name))

    def per_token(self) -> bool:
        """Whether all that acts on queries and on what comes after the attention acts on each token by itself.

        Hooks of k and v may read other tokens: those see all of them anyway.
        """
        hooks = [hook for name in ("q", "proj", "fc1", "fc2") for hook in self.linear.get(name, ())]
        after = [adapter for adapter in (self.after_attention, self.after_mlp) if adapter is not None]
        return all(map(acts_per_token, (*hooks, *after, *self.beside_attention, *self.beside_mlp)))


NOTHING = Sites()
ONE_OWNER = ("after_attention", "after_mlp", "rewrite")


def merge(parts: Iterable[tuple[str, Sites]]) -> Sites:
    """One block's sites for a composition of methods.

    Args:
        parts: (method name, its sites) in the order of the composition.

    Raises:
        CompositionError: if two methods fill a one-owner site; it names both.
    """
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for method, sites in parts:
        for site in sorted(sites.filled()):
            value = getattr(sites, site)
            if site in ONE_OWNER:
                _claim(owners, site, method)
                merged[site] = value
            elif site == "affine":
                for name in value:
                    _claim(owners, f"affine[{name}]", method)
                merged[site] = {**merged.get(site, {}), **value}
            elif site == "linear":
                chains = merged.setdefault(site, {})
                for name, hooks in value.items():
                    chains[name] = (*chains.get(name, ()), *hooks)
            else:
                merged[site] = (*merged.get(site, ()), *value)
    return Sites(**merged)


def _claim(owners: dict[str, str], site: str, method: str) -> None:
    if site in owners:
        raise CompositionError(
            f"{owners[site]!r} and {method!r} both fill the site {site}, which has room for one. "
            f"Compose one of them with a method that leaves {site} free."
        )
    owners[site] = method
