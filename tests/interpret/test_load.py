"""Opening a run: the very model that was evaluated, or one clear line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from interpret.made_models import run_study, untrained_run, write_texts
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE
from isoflop.interpret.load import GateShape, open_run, shape_of, untrained
from isoflop.interpret.usage import training_usage
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import read_plan
from isoflop.train.evaluate import evaluate
from made_family import write_routed_family

pytestmark = pytest.mark.usefixtures("study_data")


def id_of(study: Path, family: str) -> str:
    return next(run.run_id for run in read_plan(study).runs if run.spec.family == family)


@pytest.fixture
def own_study(study: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(study, tmp_path / "study"))


def refusal(study: Path, run: str) -> str:
    with pytest.raises(UserError) as caught:
        open_run(study, run)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", ["sgatlin", "peer", "moe"])
def test_the_opened_model_has_the_loss_of_the_result(study: Path, family: str) -> None:
    loaded = open_run(study, id_of(study, family)[:8])
    found = evaluate(
        loaded.model, loaded.heldout, batch_size=loaded.spec.batch_size, precision="fp32"
    )
    assert found.loss == RunFolder(study, loaded.run_id).result().loss


def test_a_subject_computes_without_gradients_in_float32(study: Path) -> None:
    loaded = open_run(study, id_of(study, "sgatlin"))
    assert not loaded.model.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in loaded.model.parameters()} == {
        (torch.float32, "cpu", False)
    }
    text = "abc fgh"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text


def test_the_mask_of_documents_comes_with_the_run(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts")
    run_study(tmp_path / "study", source, archs=("sgatlin",), document_mask=True)
    loaded = open_run(tmp_path / "study", id_of(tmp_path / "study", "sgatlin"))
    assert loaded.model.document_end == loaded.data.end_of_text_id
    assert untrained(loaded).model.document_end == loaded.data.end_of_text_id


def test_untrained_is_the_same_run_before_its_first_step() -> None:
    loaded = untrained_run()
    fresh = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for parameter in loaded.model.parameters():
        parameter.add_(1.0)
    control = untrained(loaded)
    assert control.spec == loaded.spec
    for name, value in control.model.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    assert not any(p.requires_grad for p in control.model.parameters())


def test_a_dense_run_is_refused(study: Path) -> None:
    message = refusal(study, id_of(study, "mlp"))
    assert "family = 'mlp'" in message
    assert "a dense run has no gates" in message


def test_an_unknown_run_is_refused(study: Path) -> None:
    assert "first digits of a run id" in refusal(study, "0123456789")


def test_a_study_without_a_plan_is_refused(tmp_path: Path) -> None:
    assert "a plan.json" in refusal(tmp_path, "0")


def test_without_weights_the_runs_that_have_them_are_named(own_study: Path) -> None:
    kept = [id_of(own_study, family)[:12] for family in ("moe", "peer")]
    shutil.rmtree(RunFolder(own_study, id_of(own_study, "sgatlin")).checkpoints)
    message = refusal(own_study, id_of(own_study, "sgatlin"))
    assert all(name in message for name in kept)
    # A dense run is no choice.
    assert id_of(own_study, "mlp")[:12] not in message


def test_without_any_weights_the_study_is_to_keep_them(own_study: Path) -> None:
    for folder in own_study.glob("runs/*/ckpt"):
        shutil.rmtree(folder)
    message = refusal(own_study, id_of(own_study, "sgatlin"))
    assert 'set keep_weights = "best" or "all" in the study' in message


def test_damaged_weights_are_refused(own_study: Path) -> None:
    (path,) = RunFolder(own_study, id_of(own_study, "sgatlin")).checkpoints.glob("*/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "must be as they were written" in refusal(own_study, id_of(own_study, "sgatlin"))


@pytest.mark.parametrize("data", [b"{}", save({}), save({"x": torch.zeros(2)})])
def test_weights_of_nothing_with_a_digest_that_fits_are_refused(
    own_study: Path, data: bytes
) -> None:
    (path,) = RunFolder(own_study, id_of(own_study, "sgatlin")).checkpoints.glob("*/*.safetensors")
    path.write_bytes(data)
    state = json.loads(path.with_name("state.json").read_text())
    state["files"][path.name]["sha256"] = hashlib.sha256(data).hexdigest()
    path.with_name("state.json").write_text(json.dumps(state))
    assert "must be as they were written" in refusal(own_study, id_of(own_study, "sgatlin"))
    path.unlink()
    os.mkfifo(path)
    assert "with its weights kept" in refusal(own_study, id_of(own_study, "sgatlin"))


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_data_prepared_from_a_changed_corpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    source = write_texts(tmp_path / "texts")
    run_study(tmp_path / "study", source, archs=("sgatlin",), tokenizer=tokenizer)
    write_texts(tmp_path / "texts", seed=2)
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(tmp_path / "other"))
    prepare(source, tokenizer, None, options=PrepareOptions())
    message = refusal(tmp_path / "study", id_of(tmp_path / "study", "sgatlin"))
    assert message.startswith("data id of files:")
    assert "which was planned with" in message


def test_data_that_are_not_there_are_asked_for(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="isoflop data prepare"):
        open_run(study, id_of(study, "sgatlin"), data_dir=tmp_path)


@pytest.mark.slow
def test_a_routed_family_from_outside_is_logged_and_read_like_a_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv(PATHS_VARIABLE, "")
    family = write_routed_family(tmp_path / "lanes")
    source = write_texts(tmp_path / "texts")
    run_study(tmp_path / "study", source, archs=("lanes",), family_paths=(str(family),))
    loaded = open_run(tmp_path / "study", id_of(tmp_path / "study", "lanes"))
    assert shape_of(loaded) == GateShape(num_layers=2, num_channels=2, num_experts=16)
    assert loaded.folder is not None
    usage = training_usage(loaded.folder)
    assert usage is not None
    assert {(row["channel"], row["num_experts"]) for row in usage} == {(0, 16), (1, 16), (None, 32)}
    weights = next((loaded.folder).rglob("*.safetensors"))
    weights.rename(weights.with_suffix(".away"))
    assert "with its weights kept" in refusal(tmp_path / "study", loaded.run_id)
