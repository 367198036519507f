"""The file form of a cluster profile, checked by pydantic."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

_Text = Annotated[str, Field(strict=True, min_length=1)]
_Positive = Annotated[int, Field(strict=True, ge=1)]
_Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProfileFile(BaseModel):
    """As isoflop.launch.slurm.profile.ClusterProfile, whose defaults hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Text
    hardware: _Text
    description: StrictStr = ""
    partition: _Text | None = None
    account: _Text | None = None
    qos: _Text | None = None
    gpus_per_node: Annotated[int, Field(strict=True, ge=0)] = 0
    gpu_type: _Text | None = None
    ranks_per_node: _Positive | None = None
    cpus_per_device: _Positive = 1
    memory_gb_per_device: _Amount | None = None
    time_limit_min: _Positive = 1
    time_floor_min: _Positive = 1
    time_margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1
    signal_s: _Positive = 1
    throttle: _Positive = 1
    max_submit: _Positive | None = None
    runs_per_task: _Positive = 1
    max_failures: _Positive = 1
    price_per_hour: _Amount | None = None
    modules: list[_Text] = []
    venv: _Text | None = None
    setup: list[_Text] = []
    sbatch: dict[StrictStr, StrictStr | StrictInt | StrictBool] = {}
