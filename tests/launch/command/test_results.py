from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop import trainer
from isoflop.errors import UserError
from isoflop.launch.command import patterns, rows
from isoflop.launch.command.results import (
    MAX_JSON_BYTES,
    Places,
    TrainerResult,
    check_against_plan,
    read_ending,
    read_result,
)
from isoflop.launch.command.rows import LinesSource, look_up, number
from isoflop.study.trainer import ResultTable

NATS = "nats_per_token"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    checkpoints, reported = tmp_path / "trainer [1]", tmp_path / "reported" / "0001"
    checkpoints.mkdir()
    reported.mkdir(parents=True)
    values = {
        **{"checkpoint_dir": str(checkpoints), "result": str(reported / "result.json")},
        **{"log": str(reported / "log.txt"), "run_id": "ab12"},
    }
    return Places(values=values, folder=tmp_path)


def write(places: Places, name: str, content: str | bytes) -> Path:
    path = Path(places.values["checkpoint_dir"]) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(table: ResultTable, places: Places) -> str:
    with pytest.raises(UserError) as refused:
        read_result(table, places)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The helper's file


def test_what_finish_writes_is_read(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_RESULT", str(places.result))
    trainer.finish(
        loss=2.5, tokens=2**60, n_params=7, loss_se=0.25, wall_s=3, acc=0.5, nan=math.nan
    )
    found = read_result(ResultTable(unit=NATS, metrics={"accuracy": "acc"}), places)
    assert found == TrainerResult(
        loss=2.5,
        tokens=2**60,
        **{"n_params": 7, "loss_se": 0.25, "wall_s": 3.0},
        metrics={"accuracy": 0.5, "acc": 0.5, "nan": None},
    )
    assert found.ending is None
    assert read_ending(places) is None


def test_stopping_and_diverging_are_told_whatever_the_exit_code(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_ending(places) is None
    monkeypatch.setenv("ISOFLOP_RESULT", str(places.result))
    for end, status in ((trainer.stop, "stopped"), (trainer.diverged, "diverged")):
        with pytest.raises(SystemExit):
            end("so it is")
        ending = read_ending(places)
        assert ending is not None
        assert (ending.status, ending.reason) == (status, "so it is")
    assert "loss" in refusal(ResultTable(unit=NATS), places)


def test_a_loss_of_another_name_is_found_among_the_metrics(places: Places) -> None:
    values = {"loss": 1.0, "tokens": 8, "metrics": {"val/bpb.0": 0.75}}
    places.result.write_text(json.dumps(values))
    assert read_result(ResultTable(unit="bits_per_byte", loss="val/bpb.0"), places).loss == 0.75


# JSON


@pytest.mark.parametrize(
    ("key", "values", "loss"),
    [
        ("eval.loss", {"eval": {"loss": 2}}, 2.0),
        ("eval.loss", {"eval.loss": "2.5e0", "eval": {"loss": 9}}, 2.5),
        ("a.b.c.d", {"a": {"b.c": {"d": 3.0}}}, 3.0),
        ("history.-1.ü", {"history": [{"ü": 1}, {"ü": 4}]}, 4.0),
    ],
)
def test_dotted_keys(key: str, values: Any, loss: float, places: Places) -> None:
    write(places, "out.json", b"\xef\xbb\xbf" + json.dumps(values).encode())
    table = ResultTable(json="{checkpoint_dir}/out.json", unit=NATS, loss=key)
    found = read_result(table, places)
    assert (found.loss, found.tokens) == (loss, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "valid JSON"),
        (b'{"loss": 2.5, "tok', "valid JSON"),
        (b"\xff\xfe{\x00", "valid JSON"),
        (b"[" * 100_000, "valid JSON"),
        (b'{"loss": ' + b"9" * 5000 + b"}", "valid JSON"),
        (b"[2.5]", "a JSON object"),
        (b"{}", "with a value in"),
        (b'{"los": 1, "train": 2}', "which has los, train"),
        (b'{"loss": null}', "with a value in"),
        (b'{"loss": ""}', "with a value in"),
        (b'{"loss": "low"}', "loss ('low' is no number): must be a number"),
        (b'{"loss": "1_0"}', "is no number"),
        (b'{"loss": true}', "a bool is no number"),
        (b'{"loss": [2.5]}', "a list is no number"),
        (b'{"loss": 1' + b"0" * 400 + b"}", "so many digits"),
        (b'{"loss": 2.5, "tokens": 8.5}', "tokens = 8.5: must be a whole number"),
        (b'{"loss": 2.5, "tokens": -8}', "a whole number"),
        (b'{"loss": 2.5, "tokens": NaN}', "a whole number"),
        (b'{"loss": 2.5, "tokens": 8}', "metric acc = 'eval.acc'"),
        (b'{"loss": 2.5, "tokens": 8, "eval": {"acc": "high"}}', "metric acc = eval.acc ('high'"),
        (b" " * (MAX_JSON_BYTES + 1), "at most 64 MB"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:24]),
)
def test_damaged_json_is_refused_in_one_line(content: bytes, said: str, places: Places) -> None:
    write(places, "out.json", content)
    path = "{checkpoint_dir}/out.json"
    metrics = {"acc": "eval.acc"} if b"8" in content else {}
    table = ResultTable(json=path, unit=NATS, tokens="tokens", metrics=metrics)
    assert said in refusal(table, places)


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl", "log", "tensorboard", "wandb"])
def test_a_file_that_is_not_there_is_named(kind: str, places: Places) -> None:
    table = ResultTable(**{kind: "{checkpoint_dir}/none"}, unit=NATS, loss="(loss)")
    assert f"{places.values['checkpoint_dir']}/none" in refusal(table, places)


def test_a_pipe_is_not_waited_for(places: Places) -> None:
    os.mkfifo(Path(places.values["checkpoint_dir"]) / "out.json")
    table = ResultTable(json="{checkpoint_dir}/out.json", unit=NATS)
    assert "Not a regular file" in refusal(table, places)


def test_tokens_are_needed_in_the_file_that_isoflop_names(places: Places) -> None:
    places.result.write_text('{"loss": 2.5}')
    assert "tokens" in refusal(ResultTable(unit=NATS), places)
    places.result.write_text('{"loss": 2.5, "tokens": 8, "unit": "bits_per_byte"}')
    assert f"unit = 'bits_per_byte': must be the study's {NATS}" in refusal(
        ResultTable(unit=NATS), places
    )


def test_of_the_files_that_a_pattern_fits_the_newest_is_read(places: Places) -> None:
    for step, loss in ((20, 3.0), (100, 2.0), (3, 4.0)):
        path = write(places, f"meta_{step}.json", json.dumps({"val_bpb": loss}))
        os.utime(path, ns=(step, step))
    table = ResultTable(json="{checkpoint_dir}/meta_*.json", unit="bits_per_byte", loss="val_bpb")
    assert read_result(table, places).loss == 2.0


# Lines


def test_the_last_row_of_a_csv_that_has_a_loss(places: Places) -> None:
    text = (
        '\ufeffstep, val loss ,"tokens",acc\r\n0,3.5,100,\r\n250,"1,234.5e-3","1,200",0.5\r\n'
        # Of another attempt; a row that is cut off.
        "step,val loss,tokens,acc\r\n500,,2400,\r\n600,N/A,2500,\r\n700,9."
    )
    write(places, "log.csv", text)
    path = "{checkpoint_dir}/log.csv"
    table = ResultTable(csv=path, unit=NATS, loss="val loss", tokens="tokens", metrics={"a": "acc"})
    found = read_result(table, places)
    assert (found.loss, found.tokens, found.metrics) == (1.2345, 2500, {"a": 0.5})


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_other_delimiters(delimiter: str, places: Places) -> None:
    write(places, "log.tsv", f"step{delimiter}loss\n1{delimiter}nan\n")
    found = read_result(ResultTable(csv="{checkpoint_dir}/log.tsv", unit=NATS), places)
    assert math.isnan(found.loss)
    assert found.ending is not None
    assert (found.ending.status, found.ending.reason) == ("diverged", "the final loss is nan")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "a table with a header"),
        ("\n\n", "a table with a header"),
        ("step,val\n1,2\n", "which has step, val"),
        ("step,loss,loss\n1,2,3\n", "once in"),
        ("step,loss\n1,2.5\n2,oops\n", "'oops' is no number"),
        ("step,loss\n", "with a value in"),
        ("step,loss\n1,2.5,7\n", "with a value in"),
    ],
)
def test_damaged_csv_is_refused(content: str, said: str, places: Places) -> None:
    write(places, "log.csv", content)
    assert said in refusal(ResultTable(csv="{checkpoint_dir}/log.csv", unit=NATS), places)


def test_json_lines_with_damage(places: Places) -> None:
    lines = ['{"eval": {"loss": 2.5}, "a": "\u2028"}', "\x00\x00", "[1]", '{"eval": {"loss": 2.']
    write(places, "log.jsonl", "\n".join(lines))
    table = ResultTable(jsonl="{checkpoint_dir}/log.jsonl", unit=NATS, loss="eval.loss")
    assert read_result(table, places).loss == 2.5


def test_a_million_rows_are_read_from_their_end(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "step,loss\n" + "1234,5.25\n" * 1_000_000
    path = write(places, "log.csv", text)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**12)
    blocks: list[int] = []
    cells = rows._cells
    monkeypatch.setattr(
        rows, "_cells", lambda text, by: blocks.append(len(text)) or cells(text, by)
    )
    assert read_result(ResultTable(csv=f"{{checkpoint_dir}}/{path.name}", unit=NATS), places).loss
    assert sum(blocks) < 2**13


@settings(max_examples=50)
@given(
    lines=st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line), max_size=9),
    block=st.integers(10, 20),
)
def test_blocks_from_the_end_are_the_file(
    lines: list[bytes], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK_BYTES", block)
        blocks = list(LinesSource(path, lambda keys: lambda text: [])._blocks_backwards())
    assert b"".join(reversed(blocks)) == path.read_bytes()
    assert all(text.endswith(b"\n") for text in blocks[1:])


def test_a_line_without_an_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    monkeypatch.setattr(rows, "BLOCK_BYTES", 8)
    path.write_bytes(b"one\n" + b"x" * 100 + b"\ntwo\nthree")
    blocks = list(LinesSource(path, lambda keys: lambda text: [])._blocks_backwards())
    assert b"".join(reversed(blocks)) == b"one\ntwo\nthree"
    monkeypatch.setattr(rows, "MAX_BYTES", 8)
    assert list(LinesSource(path, lambda keys: lambda text: [])._blocks_backwards()) == [b"three"]


# Logs

LOG = (
    "step 0: train loss 9.1, val loss 9.5\r\n"
    "\x1b[32mstep 250: train loss 3.1, val loss \x1b[1m3.25\x1b[0m\n"
    "10%|#  | loss=9\r20%|## | loss=8\r30%|###| loss=7\n"
    "iter 251: loss 3.0 tokens 1,024 \xff\n"
)


def test_the_last_match_in_a_log(places: Places) -> None:
    Path(places.values["log"]).write_bytes(LOG.encode("latin-1"))
    table = ResultTable(
        **{"log": "{log}", "unit": NATS, "loss": r"val loss (?P<unit>\x20)?(?P<loss>\S+)"},
        **{"tokens": r"tokens (\S+)", "metrics": {"bar": r"loss=(\d)"}},
    )
    found = read_result(table, places)
    assert (found.loss, found.tokens, found.metrics) == (3.25, 1024, {"bar": 7.0})


def test_a_pattern_that_never_ends_is_given_up(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "TIMEOUT_S", 0.3)
    Path(places.values["log"]).write_text("loss " + "a" * 60)
    table = ResultTable(log="{log}", unit=NATS, loss=r"loss ((a+)+)b")
    assert "a quicker pattern" in refusal(table, places)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log": "{log}", "loss": "("}, "a regular expression"),
        ({"log": "{log}", "loss": "loss"}, "with a group"),
        ({"log": "{log}", "loss": r"(?P<step>\d+)"}, "with a group"),
        ({"log": "{log}", "loss": "(a)", "metrics": {"m": "b"}}, "trainer.result.m = 'b'"),
        ({"csv": "out/log.csv"}, "each run has a file of its own"),
        ({"json": "{result}", "csv": "{checkpoint_dir}/a"}, "remove the others"),
        ({"unit": "nats per token"}, "name of a metric"),
    ],
)
def test_a_table_that_cannot_be_read_by_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        ResultTable(**{"unit": NATS, **changes})


# Values


@given(st.floats() | st.integers(-(2**70), 2**70))
def test_numbers_are_read_as_they_are_written(value: float) -> None:
    for text in (repr(value), f" {value!r}\r", repr(value).upper()):
        found = number(text)
        assert type(found) is type(value) or not math.isfinite(value)
        assert found == value or math.isnan(value)


@given(st.text("0123456789+-.,einfaNonul/ "))
def test_no_text_breaks_the_reading_of_numbers(text: str) -> None:
    try:
        found = number(text)
    except ValueError:
        return
    assert found is None or found == float(text.replace(",", "")) or math.isnan(found)


JSON_VALUES = st.recursive(
    st.none() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(".ab01-"), inner),
    max_leaves=9,
)


@settings(max_examples=50)
@given(JSON_VALUES, st.text(".ab01-"))
def test_no_key_breaks_the_looking_up(values: Any, key: str) -> None:
    found = look_up(values, key)
    if isinstance(values, dict) and key in values:
        assert found == values[key]


def test_what_differs_from_the_plan_is_named_with_both_numbers() -> None:
    same = TrainerResult(loss=1.0, tokens=1024, n_params=7)
    check_against_plan(same, n_tokens=1024, n_params=7)
    check_against_plan(TrainerResult(loss=1.0), n_tokens=1024, n_params=7)
    for tokens, said in ((1025, "stop after {steps}"), (256, "one of 4"), (0, "stop after")):
        with pytest.raises(UserError, match=f"tokens = {tokens}: must be the plan's 1024.*{said}"):
            check_against_plan(TrainerResult(loss=1.0, tokens=tokens), n_tokens=1024, n_params=7)
    with pytest.raises(UserError, match="n_params = 8: must be the 7 counted"):
        check_against_plan(TrainerResult(loss=1.0, n_params=8), n_tokens=1024, n_params=7)
