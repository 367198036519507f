"""Activation patching: a counterfactual prompt's choice of experts in place of the clean one's.

The prompt is "The NOUN was". After it a model that knows the fact of the clean noun prefers the
clean adjective. The experts and scores that the router chose for the counterfactual noun replace
its choices for the clean noun in some layers; all else is computed as before. Controls put other
gates there, or the same gates elsewhere.

All tokens of the noun are patched. The last layer's gates there reach no later token, so that alone
they have no effect.

Letters: B pairs, T tokens, P patched tokens (of all pairs), C channels, K experts chosen per
channel, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.families import get_routing
from isoflop.interpret.effects import EFFECTS, INTERVENTION, INTERVENTIONS, effects, indirect_effect
from isoflop.interpret.facts import Fact, Pair, Prompt, make_pairs, make_prompts
from isoflop.interpret.figures import save_effects
from isoflop.interpret.gates import Gates, Patch, check_patchable, patched_gates, recorded_gates
from isoflop.interpret.load import LoadedRun
from isoflop.tables import write_table

RANDOM_NOUN, OTHER_POSITION = "random noun", "other position"
RANDOM_GATES, ABLATION = "random gates", "ablation"
CONTROLS = (RANDOM_NOUN, OTHER_POSITION, RANDOM_GATES, ABLATION)
"""Gates of a third noun, whose adjective is neither of the two. The counterfactual prompt's gates
at other tokens than the noun's (before the noun they are the clean ones). The counterfactual scores
on experts drawn at random, so that the gates have the same norm. The clean noun's experts with
scores of 0 (not where a softmax follows)."""

BATCH_PAIRS = 128


def layer_sets(num_layers: int) -> dict[str, range]:
    """Return each layer alone, then the layers from the first to each: "0", "1", "0-1"."""
    single = {str(layer): range(layer, layer + 1) for layer in range(num_layers)}
    return single | {f"0-{last}": range(last + 1) for last in range(1, num_layers)}


def interventions(
    loaded: LoadedRun,
    pairs: Sequence[Pair],
    *,
    layers: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of isoflop.interpret.effects.INTERVENTIONS: each pair, layers and control.

    Args:
        loaded: a model of the family sgatlin or peer.
        pairs: from :func:`make_pairs`.
        layers: sets to patch, by name; None: :func:`layer_sets`.
        seed: of the random gates.

    Raises:
        UserError: the model's choices cannot be patched.
    """
    check_patchable(loaded.model)
    layers = layer_sets(loaded.spec.n_layers) if layers is None else layers
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for start in range(0, len(pairs), BATCH_PAIRS):
        batch = _Batch(loaded, pairs[start : start + BATCH_PAIRS], generator)
        rows += [row for name, chosen in layers.items() for row in batch.rows(name, chosen)]
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """The gates that a control puts in, of all layers, and the places of the patched tokens."""

    pairs: Sequence[int]
    """Pairs of the batch that it exists for."""
    at_P: list[int]
    """Places in the flattened batch."""
    idx: Sequence[Tensor]
    """Experts by layer, [P, C, K]."""
    score: Sequence[Tensor]
    positions: Sequence[str]
    """Positions as text, for each pair of ``pairs``."""


class _Batch:
    """Some pairs: their prompts run once each, then with every change of gates."""

    def __init__(
        self, loaded: LoadedRun, pairs: Sequence[Pair], generator: torch.Generator
    ) -> None:
        self._model, self._pairs = loaded.model, pairs
        self._num_tokens = max(pair.read for pair in pairs) + 1
        routing = get_routing(loaded.spec.family, loaded.spec.config)
        assert routing is not None
        self._num_experts = routing.num_experts
        self._raw_scores = routing.raw_scores
        self._generator = generator
        self._clean_BT = self._tokens([pair.clean for pair in pairs])
        self._d_clean_B, self._clean = self._run(self._clean_BT)
        self._d_cf_B, self._cf = self._run(self._tokens([pair.cf for pair in pairs]))
        # Where there is no third noun its row is the clean one, and is not used.
        third = [pair.third or pair.clean for pair in pairs]
        self._third = self._run(self._tokens(third))[1]
        self._changes = dict(self._make_changes())

    def rows(self, name: str, layers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows of one set of layers, under all controls."""
        for control, change in self._changes.items():
            patches = {
                layer: Patch(
                    positions=change.at_P, idx_PCK=change.idx[layer], score_PCK=change.score[layer]
                )
                for layer in layers
            }
            with patched_gates(self._model, patches):
                logits_BV = self._logits(self._clean_BT)
            d_int_B, first_B = self._difference(logits_BV), logits_BV.argmax(-1)
            for b, positions in zip(change.pairs, change.positions, strict=True):
                measures = indirect_effect(
                    float(self._d_clean_B[b]), float(self._d_cf_B[b]), float(d_int_B[b])
                )
                yield {
                    **_names(self._pairs[b]),
                    "layers": name,
                    "control": control,
                    "positions": positions,
                    **measures,
                    # Before all tokens, not only before the clean answer.
                    "answers_cf": int(first_B[b]) == self._pairs[b].cf_answer,
                }

    def _tokens(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return prompts [B, T], the end filled with pads, which nothing before them can see."""
        tokens_BT = torch.zeros(len(prompts), self._num_tokens, dtype=torch.int64)
        for b, (prompt, pair) in enumerate(zip(prompts, self._pairs, strict=True)):
            kept = prompt.tokens[: pair.read + 1]
            tokens_BT[b, : len(kept)] = torch.tensor(kept)
        return tokens_BT

    @torch.no_grad()
    def _logits(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits [B, V] at the position that is read."""
        logits_BTV = self._model(tokens_BT)
        read_B = torch.tensor([pair.read for pair in self._pairs])
        result: Tensor = logits_BTV[torch.arange(len(read_B)), read_B]
        return result

    def _run(self, tokens_BT: Tensor) -> tuple[Tensor, Gates]:
        with recorded_gates(self._model) as gates:
            return self._difference(self._logits(tokens_BT)), gates

    def _difference(self, logits_BV: Tensor) -> Tensor:
        """Return the clean answer's logit minus the counterfactual one's, float64 [B]."""
        row_B = torch.arange(len(self._pairs))
        clean_B = torch.tensor([pair.clean_answer for pair in self._pairs])
        cf_B = torch.tensor([pair.cf_answer for pair in self._pairs])
        logits_BV = logits_BV.double()
        return logits_BV[row_B, clean_B] - logits_BV[row_B, cf_B]

    def _make_changes(self) -> Iterator[tuple[str, _Change]]:
        everyone = list(range(len(self._pairs)))
        yield INTERVENTION, self._change(everyone, self._cf)
        having = [b for b in everyone if self._pairs[b].third is not None]
        if having:
            yield RANDOM_NOUN, self._change(having, self._third)
        yield OTHER_POSITION, self._change(everyone, self._cf, elsewhere=True)
        yield RANDOM_GATES, self._change(everyone, self._with_random_experts())
        if self._raw_scores:
            zero = [torch.zeros_like(score) for score in self._clean.score]
            yield ABLATION, self._change(everyone, Gates(idx=self._clean.idx, score=zero))

    def _change(self, pairs: list[int], source: Gates, *, elsewhere: bool = False) -> _Change:
        """Return the gates of ``source`` at the noun's tokens, or at others."""
        at, positions = [], []
        for b in pairs:
            places = sorted(self._pairs[b].elsewhere) if elsewhere else self._pairs[b].noun
            at += [b * self._num_tokens + place for place in places]
            positions.append(",".join(map(str, places)))
        return _Change(
            pairs=pairs,
            at_P=at,
            idx=[idx_TCK[at] for idx_TCK in source.idx],
            score=[score_TCK[at] for score_TCK in source.score],
            positions=positions,
        )

    def _with_random_experts(self) -> Gates:
        """Return the counterfactual scores, each channel's on different experts drawn at random."""
        idx = []
        for idx_TCK in self._cf.idx:
            num_tokens, num_channels, k = idx_TCK.shape
            draw_TCE = torch.rand(
                num_tokens, num_channels, self._num_experts, generator=self._generator
            )
            idx.append(draw_TCE.topk(k).indices.int())
        return Gates(idx=idx, score=self._cf.score)


def _names(pair: Pair) -> dict[str, str]:
    return {
        "clean_noun": pair.clean.fact.noun,
        "clean_adjective": pair.clean.fact.adjective,
        "cf_noun": pair.cf.fact.noun,
        "cf_adjective": pair.cf.fact.adjective,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Patching:
    """The effects of patching gates, and the files that hold them."""

    rows: Sequence[dict[str, Any]]
    """Rows of isoflop.interpret.effects.EFFECTS."""
    files: Sequence[Path]


def write_patching(loaded: LoadedRun, facts: Sequence[Fact], out: Path, *, seed: int) -> Patching:
    """Patch the gates of every noun into other nouns' prompts; write the effects to ``out``.

    Args:
        loaded: a model of the family sgatlin or peer.
        facts: what it may have learned.
        out: folder for interventions.parquet, effects.parquet and the figure.
        seed: of the pairs, the random gates and the draws of nouns.

    Raises:
        UserError: the model's choices cannot be patched; no two facts make a pair.
    """
    prompts = make_prompts(facts, loaded.tokenizer)
    rows = interventions(loaded, make_pairs(prompts, seed=seed), seed=seed)
    found = effects(rows, seed=seed)
    tables = {INTERVENTIONS: rows, EFFECTS: found}
    for schema, written in tables.items():
        write_table(out / f"{schema.table}.parquet", written, schema)
    paths = [out / f"{schema.table}.parquet" for schema in tables]
    return Patching(rows=found, files=[*paths, *save_effects(found, out)])
