"""SLURM's commands, pretended: they keep what they are given and say what a test tells them to."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.submit import submit as command
from isoflop.data.prepare import prepare as prepare_data
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from made_studies import micro

CPU = ClusterProfile(name="cpu", hardware="cpu2", partition="main")
_SBATCH = """#!/bin/bash
# Keeps what it was given, and what was on the disk at that moment.
n=$(ls "$PRETENDED"/*.sh 2>/dev/null | wc -l)
cp "$1" "$PRETENDED/$n.sh"
env > "$PRETENDED/$n.env"
cat "$(dirname "$1")"/../submission.json > "$PRETENDED/$n.json"
if [ -e "$PRETENDED/kill-$n" ]; then kill -9 $$; fi
if [ -e "$PRETENDED/refuse-$n" ]; then cat "$PRETENDED/refuse-$n" >&2; exit 1; fi
echo "Submitted batch job $((100 + n))"
"""
_SCONTROL = '#!/bin/bash\ncat "$PRETENDED/config"\n'
_SQUEUE = """#!/bin/bash
# In its lines, @0 is the comment of the first script that sbatch got.
text=$(cat "$PRETENDED/queue")
for script in "$PRETENDED"/*.sh; do
    name=${script##*/}
    while read -r line; do
        case $line in
        "#SBATCH --comment="*) text=${text//"|@${name%.sh}|"/"|${line#*=}|"} ;;
        esac
    done 2>/dev/null <"$script"
done
echo "$text"
"""


@dataclass(frozen=True)
class Pretended:
    """Commands named as SLURM's, and what they are to answer."""

    folder: Path

    def refuse(self, call: int, words: str) -> None:
        (self.folder / f"refuse-{call}").write_text(words)

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def config(self, **values: object) -> None:
        (self.folder / "config").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))

    @property
    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.sh"))]


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    folder.mkdir()
    scripts = {"sbatch": _SBATCH, "scontrol": _SCONTROL, "squeue": _SQUEUE, "srun": "#!/bin/sh\n"}
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("PRETENDED", str(folder))
    # Which cluster this is is remembered by it.
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    made = Pretended(folder)
    made.queue()
    made.config(MaxArraySize=1001)
    return made


def made_study(folder: Path) -> tuple[Path, Plan]:
    """Three runs of one core."""
    plan = make_plan(micro(archs=("mlp",), sizes=(1, 2, 3)))
    folder.mkdir()
    write_plan(plan, folder)
    prepare_data("sotu-embedded", "byte")
    return folder, plan


def typed(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def write_profile(folder: Path, **values: Any) -> Path:
    path = folder.parent / "mine.toml"
    whole = {"name": "mine", "hardware": "cpu2", **values}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in whole.items()))
    return path
