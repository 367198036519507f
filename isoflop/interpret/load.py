"""A trained run, opened to look into it: its model, tokenizer and held-out text, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import UserError, shown
from isoflop.families import get_routing
from isoflop.files import read_json, sha256_file
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.weights import final_weights
from isoflop.model.transformer import Transformer, build_model
from isoflop.model.weights import load_weights
from isoflop.plan.artefact import read_plan
from isoflop.plan.edit import find_run
from isoflop.plan.planner import Plan
from isoflop.spec import RunSpec, run_id, shown_id
from isoflop.train.evaluate import evaluation_windows
from isoflop.train.routing import gated_modules

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer
    from isoflop.data.windows import HeldoutWindows, TokenData

_FOLDER_NAME = "interpret"
_STATE_FILE = "state.json"
_SHOWN_RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A model to look into, with all that belongs to it."""

    spec: RunSpec
    run_id: str
    """64 hex digits."""
    model: Transformer
    """The model, on the CPU, in float32 whatever the run's precision, without gradients."""
    tokenizer: Tokenizer
    heldout: HeldoutWindows | None
    """The held-out text; None: the model came without."""
    folder: Path | None
    """The run's folder; None: the model is no run's."""
    data: TokenData | None = None
    """The prepared data, for training text and names of documents."""

    @classmethod
    def from_model(
        cls,
        spec: RunSpec,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        heldout: HeldoutWindows | None = None,
        folder: Path | None = None,
        data: TokenData | None = None,
    ) -> LoadedRun:
        """Return a model in memory as one, put into evaluation and without gradients."""
        return cls(
            spec=spec,
            run_id=run_id(spec),
            model=_frozen(model),
            tokenizer=tokenizer,
            heldout=heldout,
            folder=folder,
            data=data,
        )

    @property
    def out(self) -> Path:
        """The folder of its tables and figures unless another is given."""
        assert self.folder is not None
        return self.folder / _FOLDER_NAME


@dataclass(frozen=True, kw_only=True, slots=True)
class GateShape:
    """How many layers, channels and experts the gates of a model have."""

    num_layers: int
    num_channels: int
    num_experts: int
    """Experts that a channel chooses from."""


def open_run(study_folder: Path, run: str, *, data_dir: Path | None = None) -> LoadedRun:
    """Return the model of a finished run whose weights were kept, with its data.

    Args:
        study_folder: has a plan.
        run: the beginning of the run's id.
        data_dir: where prepared data lie; None: the default place.

    Raises:
        UserError: no such run; a dense one; without weights, or with damaged ones; data that are
            not those it was trained on.
    """
    plan = read_plan(study_folder, with_code=True)
    planned = find_run(plan, run)[0]
    folder = RunFolder(study_folder, planned.run_id)
    spec = planned.family_spec
    model = _empty_model(spec)
    _load_weights(model, folder, plan, study_folder)
    data = _open_data(plan, spec, data_dir)
    if spec.document_mask:
        model.document_end = data.end_of_text_id
    from isoflop.data.tokenizers import open_tokenizer

    return LoadedRun(
        spec=spec,
        run_id=planned.run_id,
        model=model,
        tokenizer=open_tokenizer(data.tokenizer_spec(), data.folder),
        heldout=evaluation_windows(spec, data),
        folder=folder.path,
        data=data,
    )


def untrained(loaded: LoadedRun) -> LoadedRun:
    """Return the run as it was before its first step: the control for what training brought."""
    model = _frozen(build_model(loaded.spec))
    model.document_end = loaded.model.document_end
    return replace(loaded, model=model)


def shape_of(loaded: LoadedRun) -> GateShape:
    """Return how many layers, channels and experts a loaded run has."""
    routing = get_routing(loaded.spec.family, loaded.spec.config)
    assert routing is not None
    return GateShape(
        num_layers=len(gated_modules(loaded.model)),
        num_channels=routing.num_channels,
        num_experts=routing.num_experts,
    )


def _empty_model(spec: RunSpec) -> Transformer:
    model = _frozen(build_model(spec))
    if not gated_modules(model):
        raise UserError(
            "family",
            spec.family,
            "one that chooses experts (sgatlin, peer, moe): a dense run has no gates",
            "choose another run; `isoflop show` lists them",
        )
    return model


def _frozen(model: Transformer) -> Transformer:
    return model.eval().requires_grad_(False)


def _load_weights(model: Transformer, folder: RunFolder, plan: Plan, study_folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = final_weights(folder)
    if path is None:
        raise _no_weights(folder, plan, study_folder)
    state = read_json(path.with_name(_STATE_FILE), "checkpoint state")
    try:
        digest = state["files"][path.name]["sha256"]
    except (KeyError, TypeError):
        name = str(path.with_name(_STATE_FILE))
        raise UserError(
            "checkpoint state", name, "as it was written", "train the run again"
        ) from None
    damaged = UserError("weights", str(path), "as they were written", "train the run again")
    if sha256_file(path) != digest:
        raise damaged
    try:
        load_weights(model, load_file(path))
    # Whoever made the folder wrote the digest, too.
    except (SafetensorError, RuntimeError):
        raise damaged from None


def _no_weights(folder: RunFolder, plan: Plan, study_folder: Path) -> UserError:
    kept = _with_weights(plan, study_folder)
    if kept:
        more = f" and {len(kept) - _SHOWN_RUNS} more" if len(kept) > _SHOWN_RUNS else ""
        do = f"choose one that has: {', '.join(kept[:_SHOWN_RUNS])}{more}"
    else:
        do = 'set keep_weights = "best" or "all" in the study and run it'
    return UserError("run", shown(shown_id(folder.run_id)), "finished, with its weights kept", do)


def _with_weights(plan: Plan, study_folder: Path) -> Sequence[str]:
    """Return the runs of families that choose experts whose weights are there."""
    return [
        shown_id(run.run_id)
        for run in plan.unique_runs
        if isinstance(run.spec, RunSpec)
        and final_weights(RunFolder(study_folder, run.run_id)) is not None
        and get_routing(run.spec.family, run.spec.config) is not None
    ]


def _open_data(plan: Plan, spec: RunSpec, data_dir: Path | None) -> TokenData:
    from isoflop.data.prepare import prepared_for_plan
    from isoflop.data.windows import open_data

    study = plan.study
    folder = prepared_for_plan(study.source, study.tokenizer, spec.data_id, data_dir)
    data = open_data(folder)
    return data
