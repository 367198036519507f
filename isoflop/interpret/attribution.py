"""What each part of the residual stream, and each expert, adds to a logit of held-out text.

Letters: B sequences, T tokens (those of a batch flattened), D width, C channels, K experts chosen
per channel, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import shift_right
from isoflop.errors import UserError
from isoflop.interpret.gates import recorded_gates
from isoflop.interpret.linear import LINEARITY, Linearity, contributions, layers_of, linearity
from isoflop.interpret.load import LoadedRun
from isoflop.model.norm import inverse_rms
from isoflop.model.transformer import Transformer
from isoflop.tables import Schema, write_table

ATTRIBUTION = Schema(
    table="attribution",
    columns=(
        ("part", "string"),
        ("layer", "int64"),
        ("channel", "int64"),
        ("rank", "int64"),
        ("expert", "int64"),
        ("score", "float64"),
        ("direct", "float64"),
        ("gradient", "float64"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """All that is added to the residual stream in a forward pass, token by token."""

    embedding_TD: Tensor
    attention: list[Tensor]
    """Each layer's attention output: [T, D]."""
    x: list[Tensor]
    """The input of each layer's feed-forward, normalised: [T, D]."""
    y: list[Tensor]
    """Each layer's feed-forward output: [T, D]."""
    idx: list[Tensor]
    """The experts that each layer chose: [T, C, K]."""
    score: list[Tensor]
    residual_TD: Tensor
    """The sum of all of it, before the output norm."""
    logits_TV: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """The contributions of a token's residual stream, part by part, to one logit there."""

    logit: float
    embedding: float
    attention_L: Tensor
    experts_LCK: Tensor


@torch.no_grad()
def trace(model: Transformer, inputs_BT: Tensor) -> Trace:
    """Run a model and keep what it adds to the residual stream.

    Raises:
        UserError: its experts are no single neurons.
    """
    layers_of(model)
    with ExitStack() as stack:
        attention = [_captured(stack, block.attention) for block in model.blocks]
        layers = [_captured(stack, block.feedforward) for block in model.blocks]
        norm = _captured(stack, model.output_norm)
        gates = stack.enter_context(recorded_gates(model))
        logits_BTV = model(inputs_BT)
    return Trace(
        embedding_TD=model.embedding[inputs_BT.flatten()],
        attention=[seen.output.flatten(0, 1) for seen in attention],
        x=[seen.input for seen in layers],
        y=[seen.output for seen in layers],
        idx=gates.idx,
        score=gates.score,
        residual_TD=norm.input.flatten(0, 1),
        logits_TV=logits_BTV.flatten(0, 1),
    )


class _Captured:
    """First input and output of a module's newest forward."""

    input: Tensor
    output: Tensor

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.input, self.output = inputs[0], output


def _captured(stack: ExitStack, module: Any) -> _Captured:
    seen = _Captured()
    stack.callback(module.register_forward_hook(seen).remove)
    return seen


def direct(model: Transformer, traced: Trace, position: int, token: int) -> Attribution:
    """Return what each part of a token's residual adds to a logit there, past all later layers.

    The output norm divides by the root mean square of the actual residual, taken as a constant, so
    the parts add up to the logit.

    Args:
        model: where ``traced`` is from.
        traced: a forward pass.
        position: in the flattened batch.
        token: whose logit it is.
    """
    inverse_1 = inverse_rms(traced.residual_TD[position].float())
    towards_D = inverse_1 * model.output_norm.scale * model.embedding[token]
    return Attribution(
        logit=float(traced.logits_TV[position, token]),
        embedding=float(traced.embedding_TD[position] @ towards_D),
        attention_L=torch.stack([added_TD[position] @ towards_D for added_TD in traced.attention]),
        experts_LCK=_experts_along(model, traced, position, [towards_D] * len(traced.y)),
    )


def by_gradient(
    model: Transformer,
    traced: Trace,
    inputs_BT: Tensor,
    *,
    position: int,
    token: int,
    source: int | None = None,
) -> Attribution:
    """Return what each part adds to a token's residual, times the gradient of a logit by it.

    So it counts, to first order, what later layers and tokens make of it; the choices of later
    routers are held, their scores are not. The parts add up to no logit: the output norm takes away
    any growth of the whole residual.

    Args:
        model: where ``traced`` is from.
        traced: the forward pass of ``inputs_BT``.
        inputs_BT: token ids.
        position: of the logit, in the flattened batch.
        token: whose logit it is.
        source: the token whose parts are wanted, in the flattened batch; None: ``position``.
    """
    at = position if source is None else source
    grads = gradients(model, inputs_BT, position, token)
    added = zip(grads.attention, traced.attention, strict=True)
    return Attribution(
        logit=float(traced.logits_TV[position, token]),
        embedding=float(grads.embedding_TD[at] @ traced.embedding_TD[at]),
        attention_L=torch.stack([grad_TD[at] @ added_TD[at] for grad_TD, added_TD in added]),
        experts_LCK=_experts_along(model, traced, at, [grad_TD[at] for grad_TD in grads.y]),
    )


def _experts_along(
    model: Transformer, traced: Trace, position: int, towards: Sequence[Tensor]
) -> Tensor:
    """Return the component [L, C, K] of each chosen expert's contribution along a direction."""
    one = slice(position, position + 1)
    rows = zip(layers_of(model), traced.x, traced.idx, traced.score, towards, strict=True)
    return torch.stack(
        [
            contributions(layer, x_TD[one], idx_TCK[one], score_TCK[one])[0] @ towards_D
            for layer, x_TD, idx_TCK, score_TCK, towards_D in rows
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradients:
    """The gradients of one logit by what is added to the residual stream: each [T, D]."""

    embedding_TD: Tensor
    attention: list[Tensor]
    y: list[Tensor]


def gradients(model: Transformer, inputs_BT: Tensor, position: int, token: int) -> Gradients:
    """Return exact gradients of the logit of ``token`` at a position of the flattened batch."""
    leaves: list[Tensor] = []

    def with_leaf(x: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(x, requires_grad=True))
        return x + leaves[-1]

    with ExitStack() as stack, torch.enable_grad():
        # Of the first block alone: the embedding is no module.
        first: Any = model.blocks[0]
        hook = first.register_forward_pre_hook(lambda _, given: (with_leaf(given[0]), *given[1:]))
        stack.callback(hook.remove)
        for block in model.blocks:
            parts: tuple[Any, ...] = (block.attention, block.feedforward)
            for module in parts:
                hook = module.register_forward_hook(lambda _, given, added: with_leaf(added))
                stack.callback(hook.remove)
        logit = model(inputs_BT).flatten(0, 1)[position, token]
    grads = [grad.reshape(-1, grad.shape[-1]) for grad in torch.autograd.grad(logit, leaves)]
    return Gradients(embedding_TD=grads[0], attention=grads[1::2], y=grads[2::2])


def attribution_rows(
    model: Transformer, traced: Trace, inputs_BT: Tensor, position: int, token: int
) -> list[dict[str, Any]]:
    """Return rows of :data:`ATTRIBUTION`: the embedding, each attention and each chosen expert.

    ``rank`` counts the experts of a channel from the best scored, 0.
    """
    along = direct(model, traced, position, token)
    slope = by_gradient(model, traced, inputs_BT, position=position, token=token)
    rows = [
        ATTRIBUTION.row(part="embedding", direct=along.embedding, gradient=slope.embedding),
        *(
            ATTRIBUTION.row(part="attention", layer=layer, direct=float(d), gradient=float(g))
            for layer, (d, g) in enumerate(zip(along.attention_L, slope.attention_L, strict=True))
        ),
    ]
    for layer, channel, rank in torch.cartesian_prod(
        *(torch.arange(size) for size in along.experts_LCK.shape)
    ).tolist():
        rows.append(
            ATTRIBUTION.row(
                part="expert",
                layer=layer,
                channel=channel,
                rank=rank,
                expert=int(traced.idx[layer][position, channel, rank]),
                score=float(traced.score[layer][position, channel, rank]),
                direct=float(along.experts_LCK[layer, channel, rank]),
                gradient=float(slope.experts_LCK[layer, channel, rank]),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitAttribution:
    """The parts of one logit, the linearity of the layers there, and where both were written."""

    checks: Sequence[Linearity]
    position: int
    before: str
    """The text up to that position; the begin token has none."""
    token: int
    text: str
    """The token as text."""
    logit: float
    rows: Sequence[dict[str, Any]]
    """Rows of :data:`ATTRIBUTION`."""
    files: Sequence[Path]


def attribute_logit(
    loaded: LoadedRun, out: Path, *, window: int, position: int | None, token: int | None
) -> LogitAttribution:
    """Write linearity.parquet of a window and attribution.parquet of one logit to ``out``.

    Args:
        loaded: a model of the family sgatlin or peer.
        out: folder for the tables.
        window: which of the held-out windows.
        position: whose logit; None: that of the window's last token.
        token: whose logit; None: that of the token to predict.

    Raises:
        UserError: another family; there is no such window, position or token.
    """
    assert loaded.heldout is not None
    _check("--window", window, len(loaded.heldout.tokens))
    targets_T = loaded.heldout.tokens[window]
    length = int((targets_T != PAD_ID).sum())
    position = length - 1 if position is None else position
    _check("--position", position, length)
    token = int(targets_T[position]) if token is None else token
    _check("--token", token, loaded.spec.vocab_size)
    inputs = shift_right(targets_T[None, :length], loaded.heldout.begin_id)
    inputs_BT = torch.from_numpy(inputs.astype(np.int64))
    traced = trace(loaded.model, inputs_BT)
    checks = linearity(loaded.model, traced.x, traced.y, traced.idx, traced.score)
    rows = attribution_rows(loaded.model, traced, inputs_BT, position, token)
    paths = (out / f"{LINEARITY.table}.parquet", out / f"{ATTRIBUTION.table}.parquet")
    write_table(paths[0], [asdict(check) for check in checks], LINEARITY)
    write_table(paths[1], rows, ATTRIBUTION)
    return LogitAttribution(
        checks=checks,
        position=position,
        before=_text(loaded, targets_T[:position]),
        token=token,
        text=_text(loaded, [token]),
        logit=float(traced.logits_TV[position, token]),
        rows=rows,
        files=paths,
    )


def _text(loaded: LoadedRun, tokens: Any) -> str:
    return loaded.tokenizer.decode(np.asarray(tokens, dtype=np.int64))


def _check(name: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise UserError(name, value, f"from 0 to {count - 1}", "correct it")
