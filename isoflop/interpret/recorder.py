"""Record what a model chooses and predicts on held-out text, while it is evaluated.

The evaluation itself runs (isoflop.train.evaluate), recorded: its windows, order and loss. One
forward pass of at most TOKENS_AT_A_TIME tokens is in memory at a time, however long the text. Both
files get their names when they are whole.

Letters: B windows of a forward pass, T tokens of a window, D width, C channels, K experts chosen
per channel, V vocabulary, N recorded tokens of a pass, R rows of a chunk, W windows in all.
"""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.data.tokenizers import PAD_ID
from isoflop.disk import naming
from isoflop.errors import UserError
from isoflop.families import get_routing
from isoflop.files import fsync_path
from isoflop.interpret.gates import Gates, recorded_gates
from isoflop.interpret.recording import (
    GATES,
    GATES_FILE,
    TOKENS,
    TOKENS_FILE,
    VERSION,
    Recording,
    arrow_schema,
)
from isoflop.train.evaluate import Evaluation, evaluate
from isoflop.train.routing import gated_modules
from isoflop_kernels import stable_topk

if TYPE_CHECKING:
    import pyarrow as pa

    from isoflop.data.windows import HeldoutWindows
    from isoflop.interpret.load import LoadedRun

TOKENS_AT_A_TIME = 8192
_CHUNK_BYTES = 2**24


def record(
    loaded: LoadedRun,
    out: Path,
    *,
    layers: Sequence[int] | None = None,
    max_tokens: int | None = None,
    num_top: int = 5,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Write gates.parquet and tokens.parquet of a run's held-out text.

    Args:
        loaded: a model with its held-out text.
        out: folder for the two files; made if missing, files of those names are replaced.
        layers: whose gates are written; None: all.
        max_tokens: stop after so many tokens; None: at the end.
        num_top: predictions to keep for each token.
        on_progress: called with the tokens written so far and all there will be.

    Returns:
        The evaluation of what was recorded: of all held-out tokens, the very one that
        :func:`isoflop.train.evaluate.evaluate` returns for these batches. With ``max_tokens`` only
        its losses per token are meaningful, its figures per byte are not.

    Raises:
        UserError: there is no such layer, or a number is not allowed.
    """
    assert loaded.heldout is not None
    heldout = loaded.heldout if max_tokens is None else _first(loaded.heldout, max_tokens)
    meta = _describe(loaded, heldout, layers, num_top)
    with ExitStack() as stack:
        writers = stack.enter_context(_writers(out, meta))
        gates = stack.enter_context(recorded_gates(loaded.model))
        model = _RecordedModel(loaded.model, heldout, meta, gates, writers, on_progress)
        stack.callback(model.close)
        return evaluate(
            model,
            heldout,
            batch_size=loaded.spec.batch_size,
            precision="fp32",
            micro_batch=windows_at_a_time(loaded.spec.batch_size, loaded.spec.seq_len),
        )


def windows_at_a_time(batch_size: int, seq_len: int) -> int:
    """Return the windows of a forward pass: a batch's, as far as TOKENS_AT_A_TIME allows."""
    return max(1, min(batch_size, TOKENS_AT_A_TIME // seq_len))


def _describe(
    loaded: LoadedRun, heldout: HeldoutWindows, layers: Sequence[int] | None, num_top: int
) -> Recording:
    num_layers = len(gated_modules(loaded.model))
    wanted = tuple(range(num_layers)) if layers is None else tuple(sorted(set(layers)))
    if not wanted or not set(wanted) <= set(range(num_layers)):
        raise UserError("--layers", list(wanted), f"within 0 to {num_layers - 1}", "correct it")
    if not 1 <= num_top <= loaded.spec.vocab_size:
        allowed = f"from 1 to the vocabulary of {loaded.spec.vocab_size}"
        raise UserError("--top", num_top, allowed, "correct it")
    routing = get_routing(loaded.spec.family, loaded.spec.config)
    assert loaded.heldout is not None
    num_tokens = _num_tokens(heldout)
    return Recording(
        version=VERSION,
        run_id=loaded.run_id,
        layers=wanted,
        num_tokens=num_tokens,
        complete=num_tokens == _num_tokens(loaded.heldout),
        num_top=num_top,
        num_experts=None if routing is None else routing.num_experts,
        shared=routing is not None and routing.shared,
    )


def _num_tokens(heldout: HeldoutWindows) -> int:
    return int((heldout.tokens != PAD_ID).sum())


def _first(heldout: HeldoutWindows, max_tokens: int) -> HeldoutWindows:
    """Return the windows with the first tokens, padded after the last of them."""
    if max_tokens < 1:
        raise UserError("--max-tokens", max_tokens, "1 or more", "correct it")
    before_W = np.cumsum((heldout.tokens != PAD_ID).sum(axis=1))
    num_windows = int(np.searchsorted(before_W, max_tokens)) + 1
    cut = copy.copy(heldout)
    cut.tokens = heldout.tokens[:num_windows].copy()
    cut.document_index = heldout.document_index[:num_windows]
    if num_windows <= len(before_W):
        excess = int(before_W[num_windows - 1]) - max_tokens
        num_last = int((cut.tokens[-1] != PAD_ID).sum()) - excess
        # Pads are at the end of a window only.
        cut.tokens[-1, num_last:] = PAD_ID
    return cut


@dataclass(frozen=True, kw_only=True, slots=True)
class _Writers:
    gates: Any
    tokens: Any


@contextmanager
def _writers(out: Path, meta: Recording) -> Iterator[_Writers]:
    """Yield writers of the two files, which get their names if nothing goes wrong inside."""
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    # A dictionary of scores would only cost time: hardly one occurs twice.
    columns = {GATES_FILE: GATES, TOKENS_FILE: TOKENS}
    mark = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
    paths = {name: out / f".{name}.{mark}" for name in columns}
    try:
        with naming(out), ExitStack() as stack:
            gates, tokens = (
                stack.enter_context(
                    pq.ParquetWriter(
                        paths[name],
                        arrow_schema(each, asdict(meta)),
                        compression="zstd",
                        use_dictionary=[column for column, kind in each if kind.startswith("int")],
                    )
                )
                for name, each in columns.items()
            )
            yield _Writers(gates=gates, tokens=tokens)
        for path in paths.values():
            fsync_path(path)
        for name, path in paths.items():
            path.replace(out / name)
        fsync_path(out)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


class _RecordedModel(nn.Module):
    """The model, of which every forward pass is written down."""

    def __init__(
        self,
        model: nn.Module,
        heldout: HeldoutWindows,
        meta: Recording,
        gates: Gates,
        writers: _Writers,
        on_progress: Callable[[int, int], None],
    ) -> None:
        super().__init__()
        self._model = model
        self._heldout = heldout
        self._meta = meta
        self._gates = gates
        self._writers = writers
        self._on_progress = on_progress
        self._num_windows = 0
        self._num_tokens = 0
        self._normed_BTD: Tensor | None = None
        self._hook = model.output_norm.register_forward_hook(self._keep)  # type: ignore[union-attr]

    def close(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _keep(self, norm: nn.Module, inputs: Any, output_BTD: Tensor) -> None:
        self._normed_BTD = output_BTD

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, *, per_token: bool) -> Tensor:
        """Return the losses [B, T] of the targets."""
        loss_BT: Tensor = self._model(inputs_BT, targets_BT, per_token=per_token)
        kept = torch.nonzero(targets_BT.flatten() != PAD_ID).squeeze(1)
        place = self._places(kept.numpy(), targets_BT.shape[1])
        self._write_tokens(place, kept, inputs_BT, targets_BT, loss_BT)
        for layer in self._meta.layers:
            self._write_gates(place, kept, layer)
        self._num_windows += len(targets_BT)
        self._num_tokens += len(kept)
        self._on_progress(self._num_tokens, self._meta.num_tokens)
        return loss_BT

    def _places(self, kept_N: NDArray[np.int64], seq_len: int) -> list[NDArray[Any]]:
        """Return document, window and position of the recorded tokens."""
        window_N = self._num_windows + kept_N // seq_len
        position_N = (kept_N % seq_len).astype(np.int32)
        return [self._heldout.document_index[window_N], window_N, position_N]

    def _write_tokens(
        self,
        place: list[NDArray[Any]],
        kept_N: Tensor,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        loss_BT: Tensor,
    ) -> None:
        assert self._normed_BTD is not None
        embedding_VD = self._model.embedding
        assert isinstance(embedding_VD, Tensor)
        normed_ND = self._normed_BTD.flatten(0, 1)[kept_N].float()
        token_NK, prob_NK = _top_predictions(normed_ND, embedding_VD, self._meta.num_top)
        columns = [
            *place,
            inputs_BT.flatten()[kept_N].int().numpy(),
            targets_BT.flatten()[kept_N].int().numpy(),
            loss_BT.flatten()[kept_N].numpy(),
            _lists(token_NK),
            _lists(prob_NK),
        ]
        _write(self._writers.tokens, columns)

    def _write_gates(self, place: list[NDArray[Any]], kept_N: Tensor, layer: int) -> None:
        idx_NCK, score_NCK = (
            values[layer][kept_N] for values in (self._gates.idx, self._gates.score)
        )
        num_tokens, num_channels, _ = idx_NCK.shape
        columns = [
            *(np.repeat(column, num_channels) for column in place),
            np.full(num_tokens * num_channels, layer, dtype=np.int16),
            np.tile(np.arange(num_channels, dtype=np.int16), num_tokens),
            _lists(idx_NCK.int().flatten(0, 1)),
            _lists(score_NCK.float().flatten(0, 1)),
        ]
        _write(self._writers.gates, columns)


def _write(writer: Any, columns: list[Any]) -> None:
    import pyarrow as pa

    arrays = [
        pa.array(column, type=field.type) if isinstance(column, np.ndarray) else column
        for column, field in zip(columns, writer.schema, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=writer.schema)
    writer.write_table(table, row_group_size=max(1, len(table)))


def _lists(values_RK: Tensor) -> pa.ListArray:
    """Return each row as a list."""
    import pyarrow as pa

    num_rows, num_each = values_RK.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * num_each
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_RK.numpy().ravel()))


def _top_predictions(
    normed_ND: Tensor, embedding_VD: Tensor, num_top: int
) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens and their probabilities, [N, num_top]; of equals the lowest."""
    size = max(1, _CHUNK_BYTES // (4 * len(embedding_VD)))
    tokens, probs = [], []
    for chunk_RD in normed_ND.split(size):
        logit_RV = chunk_RD @ embedding_VD.T
        top_RK, token_RK = stable_topk(logit_RV, num_top)
        tokens.append(token_RK.int())
        probs.append(torch.exp(top_RK - logit_RV.logsumexp(1, keepdim=True)))
    return torch.cat(tokens), torch.cat(probs)
