"""A trainer of one's own: the command that trains a run, its ladder, and where its loss is read.

The command has placeholders. Those of what the run is are filled in when it is planned and hashed
with it; those of where it runs (PLACED) when it starts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from isoflop.errors import UserError, shown
from isoflop.recipe import num_decay_steps
from isoflop.texts import has_control
from isoflop.units import NATS, UNITS, meant_unit
from isoflop.validate import CLOSED, Count, Ge, Gt, ReadBy

if TYPE_CHECKING:
    from isoflop.study import Study

RungValue = int | float | str


def _as_whole(value: Any) -> Any:
    """Return 6e8, which TOML reads as a float, as the whole number that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Large = Annotated[Count, ReadBy(function=_as_whole)]
"""A number of FLOPs, parameters or tokens, which people write as 6e8."""

PLACED = (
    *("python", "ranks", "run_id", "checkpoint_dir", "result", "log"),
    *("branch_steps", "branch_dir"),
)
"""Placeholders of where a run is trained: never part of what it is."""
PLANNED = ("steps", "tokens", "seed", "arch", "batch_tokens", "batch_size", "seq_len")
"""Placeholders of what a run is, besides the rung's and those of SCHEDULE."""
SCHEDULE = ("warmup_steps", "decay_start")
"""Placeholders of what a run is where the study has `warmup_steps`, and where it has `decay`."""
OF_LENGTH = ("steps", "tokens", "decay_start")
"""Placeholders of which runs that differ in their steps alone have other values."""

LATER_TRAINER_ENTRIES = ("branch",)
"""Entries that later versions added: plans that do without are written as they were before."""

_LOSSES = ("loss", "curve")
_KINDS = ("json", "csv", "jsonl", "log", "tensorboard", "wandb")
_DO = "correct the study"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultTable:
    """Where a run's loss is read when its command has ended, and what the loss is."""

    __pydantic_config__: ClassVar = CLOSED

    json: str | None = None
    """Path of a JSON file; None of the six: `{result}`, which isoflop.trainer.finish writes. Of the
    files that a pattern such as `meta_*.json` fits, the newest."""
    csv: str | None = None
    jsonl: str | None = None
    log: str | None = None
    """Path of a text, `{log}` for what the command writes; the keys below are then patterns."""
    tensorboard: str | None = None
    """Folder of event files; the keys below are tags."""
    wandb: str | None = None
    """Folder in which offline runs are."""
    loss: str = "loss"
    """Key, column, tag or regular expression of the loss."""
    unit: str
    """One of UNITS, or the name of another metric of which less is better."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Further numbers to keep, by the names that they get here."""
    curve: str | None = None
    """Where the loss of training stands as it goes, in the way of `loss`; None: the loss itself."""
    step: str | None = None
    tokens: str | None = None
    """Where the tokens are told, which are then compared with the plan's."""
    n_params: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            allowed = f"one of {', '.join(_KINDS)}"
            raise UserError("trainer.result", given, allowed, "remove the others")
        if not self.unit.isidentifier():
            allowed = f"one of {', '.join(UNITS)}, or the name of a metric (letters, digits, _)"
            raise UserError("trainer.result.unit", self.unit, allowed, _DO)
        if near := meant_unit(self.unit):
            allowed = "a known unit as isoflop writes it, or clearly another metric"
            raise UserError("trainer.result.unit", self.unit, allowed, f"write {near}")
        for name in self.metrics:
            if not name.isidentifier():
                allowed = "a name of letters, digits and _"
                raise UserError("trainer.result.metrics", name, allowed, "rename it")
        names = set(_placeholders("trainer.result", [self.path]))
        if names.isdisjoint(("result", "log", "run_id", "checkpoint_dir")):
            allowed = (
                "a path with {checkpoint_dir} or {run_id}, since each run has a file of its own"
            )
            raise UserError(f"trainer.result.{self.kind}", self.path, allowed, _DO)
        if self.kind == "log":
            self._check_patterns()

    def _check_patterns(self) -> None:
        given = {"loss": self.loss, "curve": self.curve, "step": self.step, "tokens": self.tokens}
        given |= {"n_params": self.n_params, **self.metrics}
        for name, text in given.items():
            if text is None:
                continue
            try:
                pattern = re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                allowed = f"a regular expression ({error})"
                raise UserError(f"trainer.result.{name}", text, allowed, _DO) from None
            beside = {"step", "tokens"} & set(pattern.groupindex) if name in _LOSSES else ()
            if pattern.groups == len(beside):
                allowed = "a regular expression with a group around the number, such as loss (\\S+)"
                raise UserError(f"trainer.result.{name}", text, allowed, _DO)

    @property
    def kind(self) -> str:
        """One of json, csv, jsonl, log, tensorboard and wandb."""
        return next((kind for kind in _KINDS if getattr(self, kind) is not None), "json")

    @property
    def path(self) -> str:
        """The file or folder, with placeholders."""
        found: str | None = getattr(self, self.kind)
        return "{result}" if found is None else found

    def filled(self, values: Mapping[str, RungValue]) -> ResultTable:
        """Return the table with some placeholders of its path filled in."""
        path: dict[str, Any] = {self.kind: filled(self.path, values)}
        return dataclasses.replace(self, **path)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredCount:
    """What a model costs, by rung, as its author says: it is not counted."""

    __pydantic_config__: ClassVar = CLOSED

    flops_per_token: tuple[Large, ...]
    """Training FLOPs per token, forward and backward pass."""
    n_params: tuple[Large, ...]
    n_active: tuple[Large, ...] | None = None
    """Parameters that a token uses; None: all."""
    n_nonembed: tuple[Large, ...] | None = None
    """Parameters outside the embedding; None: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchTable:
    """What is different in one arch, or nothing."""

    __pydantic_config__: ClassVar = CLOSED

    name: str
    args: tuple[str, ...] = ()
    """Added to the command."""
    command: tuple[str, ...] | None = None
    """In the place of the trainer's."""
    count: str | DeclaredCount | None = None
    """In the place of the trainer's."""
    count_with: Mapping[str, bool | RungValue] = field(default_factory=dict)
    """Added to the arguments of build."""
    ladder: Mapping[str, tuple[RungValue, ...]] = field(default_factory=dict)
    """Values of rungs in the place of the trainer's."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the trainer's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchTable:
    """Runs of the command that differ in length alone are one training until the shorter decays."""

    __pydantic_config__: ClassVar = CLOSED

    resume: Literal["native"]
    """A longer run leaves its state at `{branch_steps}` completed steps in `{branch_dir}`; a
    shorter one finds it in `{checkpoint_dir}` and goes on from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """The command that trains a run, and what isoflop has to know of it."""

    __pydantic_config__: ClassVar = CLOSED

    command: tuple[str, ...]
    """Program and arguments, with placeholders; no shell reads them."""
    code: str = "."
    """Folder of the code, whose content enters every run id; jobs run a snapshot of it. A path from
    the study file."""
    code_files: tuple[str, ...] = ()
    """Which files of it are code, as glob patterns; none: all but those that git ignores."""
    batch_tokens: Large
    """Tokens per optimizer step, all devices together."""
    seq_len: Count
    """Tokens per sequence."""
    data: str
    """A label: hashed, not looked at."""
    count: str | DeclaredCount
    """What builds the model to count: `package:build`, `hf:path/config.json`; or its numbers."""
    count_timeout_s: Annotated[float, Gt(0)] = 300.0
    resume: Literal["native", "restart"] = "restart"
    """Whether the command goes on from what it left in `{checkpoint_dir}`, or begins anew."""
    reads_spec: bool = False
    """Whether the command takes what is not among its arguments from isoflop.trainer.spec()."""
    warmup_steps: Annotated[int, Ge(0)] | None = None
    decay: Annotated[float, Ge(0)] | None = None
    """Share of the steps at the end in which the learning rate falls."""
    comparable_losses: bool = False
    """Whether the losses may be compared with those of built-in families."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the command's environment, part of what the run is. Those of a machine (folders
    of data, caches) are exported by who starts the runs instead: the command inherits them."""
    result: ResultTable
    ladder: Mapping[str, tuple[RungValue, ...]]
    """Values of each placeholder by rung, the smallest model first."""
    branch: BranchTable | None = None
    """None: each run is trained from its first step to its last."""

    def __post_init__(self) -> None:
        if self.batch_tokens % self.seq_len:
            allowed = f"a multiple of seq_len {self.seq_len}"
            raise UserError("trainer.batch_tokens", self.batch_tokens, allowed, _DO)
        if has_control(self.data) or not self.data.strip():
            raise UserError("trainer.data", self.data, "a label", "name the data")
        _check_ladder("trainer.ladder", self.ladder)
        for name in self.ladder:
            if name in (*PLACED, *PLANNED, *SCHEDULE) or not name.isidentifier():
                allowed = "a name of letters, digits and _ that isoflop does not use itself"
                raise UserError("trainer.ladder", name, allowed, "rename it")
        _check_declared("trainer.count", self.count, self.num_rungs)
        for name in _placeholders("trainer.result", [self.result.path]):
            _check_known("trainer.result", name, (*PLACED, *self._planned(), *self.ladder))
        if self.branch is not None:
            self._check_branch()

    def _check_branch(self) -> None:
        """Refuse a [trainer.branch] where runs do not go on, or have no common part by the study.

        Raises:
            UserError: the first mistake.
        """
        beside = "where there is a [trainer.branch]"
        if self.resume != "native":
            do = "let the command go on from {checkpoint_dir}, or remove [trainer.branch]"
            raise UserError("trainer.resume", self.resume, f"'native' {beside}", do)
        for name in ("warmup_steps", "decay"):
            if getattr(self, name) is None:
                do = "say what the command's schedule is, or remove [trainer.branch]"
                raise UserError(f"trainer.{name}", None, f"given {beside}", do)
        assert self.decay is not None
        if self.decay >= 1:
            raise UserError("trainer.decay", self.decay, f"less than 1 {beside}", _DO)

    @property
    def shares_trunks(self) -> bool:
        """Whether runs that differ in length alone may begin where they leave a longer one."""
        return self.branch is not None

    def decay_start(self, steps: int) -> int | None:
        """Return how many steps a run completes before its decay; None: the study has no decay."""
        if self.decay is None:
            return None
        # A decay of more than all steps lasts from the first one.
        return max(0, steps - num_decay_steps(steps, self.decay))

    @property
    def num_rungs(self) -> int:
        """Rungs of the ladder."""
        return len(next(iter(self.ladder.values())))

    def check_arch(self, arch: ArchTable, *, num_seeds: int) -> None:
        """Check what the command of an arch rests on.

        Args:
            arch: what is different in it.
            num_seeds: seeds of the study: a command without one may be run at a single seed.

        Raises:
            UserError: another number of rungs, an unknown placeholder, or one that is missing.
        """
        where = f"arch {arch.name}"
        for name, values in arch.ladder.items():
            _check_known(f"{where}.ladder", name, tuple(self.ladder))
            if len(values) != self.num_rungs:
                allowed = f"{self.num_rungs} values, as the trainer's ladder"
                raise UserError(f"{where}.ladder.{name}", list(values), allowed, _DO)
        if arch.count is not None:
            _check_declared(f"{where}.count", arch.count, self.num_rungs)
        field_name = "trainer.command" if arch.command is None else f"command of {where}"
        self._check_command(field_name, self.command_of(arch), self.env_of(arch), num_seeds)

    def _check_command(
        self, field_name: str, command: Sequence[str], env: Mapping[str, str], num_seeds: int
    ) -> None:
        planned = (*self._planned(), *self.ladder)
        used = set(_placeholders(field_name, [*command, *env.values()]))
        for name in sorted(used):
            _check_known(field_name, name, (*planned, *PLACED))
        if not command or not command[0].strip():
            raise UserError(field_name, list(command), "a program and its arguments", _DO)
        if self.reads_spec:
            return
        needed: list[tuple[str, ...]] = [("steps", "tokens")]
        needed += [("seed",)] if num_seeds > 1 else []
        needed += [(name,) for name in self.ladder]
        needed += [("checkpoint_dir",)] if self.resume == "native" else []
        needed += [("steps",), ("decay_start",)] if self.branch is not None else []
        for names in needed:
            if used.isdisjoint(names):
                wanted = " or ".join(f"{{{name}}}" for name in names)
                do = (
                    f"add an argument such as --{names[0].replace('_', '-')}={{{names[0]}}}, or "
                    "reads_spec = true if the code takes it from isoflop.trainer.spec()"
                )
                raise UserError(field_name, shown(" ".join(command)), f"one with {wanted}", do)

    def _planned(self) -> tuple[str, ...]:
        given = (self.warmup_steps, self.decay)
        there = (name for name, value in zip(SCHEDULE, given, strict=True) if value is not None)
        return (*PLANNED, *there)

    def count_of(self, arch: ArchTable) -> str | DeclaredCount:
        """Return what builds the models of an arch, or their numbers."""
        return self.count if arch.count is None else arch.count

    def command_of(self, arch: ArchTable) -> tuple[str, ...]:
        """Return the command of an arch, placeholders and all."""
        return (*(self.command if arch.command is None else arch.command), *arch.args)

    def env_of(self, arch: ArchTable) -> dict[str, str]:
        """Return the variables of an arch, placeholders and all."""
        return {**self.env, **arch.env}

    def values(
        self, arch: str, rung: Mapping[str, RungValue], steps: int, seed: int
    ) -> dict[str, RungValue]:
        """Return the values of the placeholders of what a run is."""
        found: dict[str, RungValue] = {
            **rung,
            "steps": steps,
            "tokens": steps * self.batch_tokens,
            "seed": seed,
            "arch": arch,
            "batch_tokens": self.batch_tokens,
            "batch_size": self.batch_tokens // self.seq_len,
            "seq_len": self.seq_len,
        }
        schedule = zip(SCHEDULE, (self.warmup_steps, self.decay_start(steps)), strict=True)
        return found | {name: value for name, value in schedule if value is not None}

    def rung_of(self, arch: ArchTable, size: int) -> dict[str, RungValue]:
        """Return the values of the ladder at a rung, from 1."""
        ladder = {**self.ladder, **arch.ladder}
        return {name: values[size - 1] for name, values in ladder.items()}


def filled(text: str, values: Mapping[str, RungValue]) -> str:
    """Return a text with the placeholders in ``values`` filled in, the others and `{{` kept."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(text):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            parts.append(_written(values[name]) if name in values else f"{{{name}}}")
    return "".join(parts)


def placed(text: str, values: Mapping[str, RungValue]) -> str:
    """Return a text with all placeholders filled in; `{{` is a brace."""
    return text.format_map({name: str(value) for name, value in values.items()})


def _written(value: RungValue) -> str:
    """Return a value as an argument has it; braces in it are no placeholders."""
    return str(value).replace("{", "{{").replace("}", "}}")


def _placeholders(field_name: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield the names in braces.

    Raises:
        UserError: a brace without its other one, or more than a name between them.
    """
    for text in texts:
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            allowed = f"text with placeholders such as {{steps}} ({error})"
            raise UserError(field_name, text, allowed, "write {{ for a brace") from None
        for _, name, spec, conversion in parsed:
            if name is None:
                continue
            if spec or conversion or not name.isidentifier():
                allowed = "text with placeholders such as {steps}"
                raise UserError(field_name, text, allowed, "write {{ for a brace")
            yield name


def _check_known(field_name: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        do = f"write {near[0]}" if near else "correct it, or write {{ for a brace"
        raise UserError(field_name, shown(f"{{{name}}}"), f"one of {', '.join(known)}", do)


def _check_ladder(field_name: str, ladder: Mapping[str, Sequence[RungValue]]) -> None:
    if not ladder or not all(ladder.values()):
        allowed = "one placeholder or more with its values by rung, such as depth = [2, 4, 6]"
        raise UserError(field_name, {k: list(v) for k, v in ladder.items()}, allowed, "add it")
    for (first, values), (name, others) in itertools.pairwise(ladder.items()):
        if len(values) != len(others):
            allowed = f"{len(values)} values, as many as {first} has"
            raise UserError(f"{field_name}.{name}", list(others), allowed, _DO)


def _check_declared(field_name: str, count: str | DeclaredCount, num_rungs: int) -> None:
    if isinstance(count, str):
        return
    for each in fields(count):
        values = getattr(count, each.name)
        if values is not None and len(values) != num_rungs:
            allowed = f"{num_rungs} numbers, one for each rung"
            raise UserError(f"{field_name}.{each.name}", list(values), allowed, _DO)


def check_trainer(study: Study, families: Sequence[str]) -> None:
    """Refuse what a trainer of one's own does not have, and archs that are half its own.

    Args:
        study: the study.
        families: labels of variants and of families from folders.

    Raises:
        UserError: the first mistake.
    """
    trainer = study.trainer
    names = [table.name for table in study.trainer_archs]
    if trainer is None:
        if names:
            raise UserError("arch", names[0], "left out without a [trainer]", "add the trainer")
        return
    for name in names:
        if names.count(name) > 1 or name in families:
            raise UserError("arch.name", name, "a label of its own", "rename the arch")
        if name not in study.archs:
            allowed = f"one of {', '.join(study.archs)}"
            raise UserError("arch.name", name, allowed, "name it under archs, or remove the table")
    num_seeds = len(study.seeds) + len(study.more_seeds)
    own = [arch for arch in study.archs if study.has_trainer(arch)]
    others = [arch for arch in study.archs if arch not in own]
    for arch in own:
        if has_control(arch) or not arch.strip():
            raise UserError("archs", arch, "a label without control characters", "rename it")
        trainer.check_arch(study.trainer_arch(arch), num_seeds=num_seeds)
        if arch in study.learning_rates:
            allowed = "of a built-in family"
            raise UserError("learning_rates", arch, allowed, "put the rate into the arch's args")
    if others and not trainer.comparable_losses:
        raise UserError(
            "archs",
            others[0],
            "an arch of the trainer: a built-in family beside it needs comparable losses",
            "add comparable_losses = true to [trainer] if they are (same text, same unit), or an "
            "[[arch]] of that name if the command trains it",
        )
    if others and trainer.result.unit != NATS:
        do = "let the trainer report nats per token, or leave the built-in families out"
        raise UserError("trainer.result.unit", trainer.result.unit, f"{NATS} beside them", do)
    _check_trainer_design(study)


def _check_trainer_design(study: Study) -> None:
    """Refuse a design that takes what only the recipe of built-in families has."""
    if study.epochs:
        allowed = "left out where there is a [trainer]"
        raise UserError("epochs", list(study.epochs), allowed, "give budgets")
    if study.match != "ladder":
        allowed = "'ladder' where there is a [trainer]"
        raise UserError("match", study.match, allowed, "give each arch a ladder of its own")
    if study.keep_weights == "best":
        allowed = "all or none where there is a [trainer]"
        raise UserError("keep_weights", study.keep_weights, allowed, "correct the study")
    if study.sizes == "auto":
        allowed = "rungs of the trainer's ladder, such as [1, 2, 3], or left out for all"
        raise UserError("sizes", study.sizes, allowed, "name them, or leave them out")
