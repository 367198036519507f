"""Mappings: what is taken for what, from names and by hand, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.mapping import ColumnMap, meets, terms_of
from isoflop.ingest.names import pattern_of
from isoflop.ingest.suggest import suggest
from isoflop.validate import validated


def raw(**columns: Any) -> RawTable:
    return table(columns)


def table(columns: dict[str, Any]) -> RawTable:
    frame = pd.DataFrame(columns)
    file = SourceFile(name="mine.csv", sha256="0" * 64, num_rows=len(frame))
    return RawTable(frame=frame, files=(file,))


def chosen(columns: dict[str, Any], asked: ColumnMap | None = None) -> ColumnMap:
    return suggest(table(columns), asked).mapping


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            # Hugging Face's Trainer.
            {
                "eval_loss": [3.0],
                "num_input_tokens_seen": [1e9],
                "total_flos": [6e16],
                "loss": [3.2],
            },
            {"loss": "eval_loss", "n_tokens": "num_input_tokens_seen", "flops": "total_flos"},
        ),
        (
            # W&B, with the levels that it puts before names.
            {"config.model.num_params": [1e8], "summary.eval/loss": [3.0], "config.seed": [1]},
            {
                "n_params": "config.model.num_params",
                "loss": "summary.eval/loss",
                "seed": "config.seed",
            },
        ),
        (
            # torchtitan.
            {"loss_metrics/global_avg_loss": [2.9], "n_tokens_seen": [5e9], "num_params": [1e8]},
            {"loss": "loss_metrics/global_avg_loss", "n_tokens": "n_tokens_seen"},
        ),
        (
            # nanochat: batches in tokens.
            {"val_bpb": [0.9], "num_iterations": [100], "total_batch_size": [524288], "N": [1e7]},
            {"n_tokens": "num_iterations * total_batch_size", "n_params": "N"},
        ),
        (
            # lm-eval beside it.
            {"Val Loss": [3.0], "N": [1e7], "D": [1e9], "results.hellaswag.acc,none": [0.3]},
            {"loss": "Val Loss", "metric_hellaswag_acc": "results.hellaswag.acc,none"},
        ),
    ],
)
def test_known_names(columns: dict[str, list[float]], expected: dict[str, str]) -> None:
    found = chosen(columns).columns
    assert {ours: found.get(ours) for ours in expected} == expected


def test_units_are_those_that_names_say() -> None:
    marin = chosen({"throughput/total_gflops": [1e9], "eval/bpb": [0.9], "params": [1e8]})
    assert (marin.flops_unit, marin.loss_unit) == ("gflop", "bits_per_byte")
    # TFLOPs alone are those of a second.
    speeds = chosen({"tflops": [400.0], "perplexity": [20.0], "params": [1e8], "tokens": [1e9]})
    assert ("flops" in speeds.columns, speeds.loss_unit) == (False, "perplexity")


def test_values_decide_whether_a_name_can_be_meant() -> None:
    found = chosen({"n": [1, 2], "D": ["1B", "2B"], "params": ["small", "large"], "loss": [3, 2]})
    assert set(found.columns) == {"n_tokens", "loss"}
    with pytest.raises(UserError, match=r"tried: loss; loss has 0.0; there are loss, x"):
        chosen({"loss": [0.0, -1.0], "x": [1.0, 2.0]})


def test_two_of_one_meaning_that_differ_are_named() -> None:
    both = {"loss": [3.0, 2.9], "tokens": [1e9, 2e9], "total_tokens": [1e9, 3e9], "N": [1e7, 2e7]}
    suggestion = suggest(table(both))
    assert suggestion.mapping.columns["n_tokens"] == "tokens"
    (note,) = suggestion.notes
    assert "tokens is taken; total_tokens differs" in note
    assert suggest(table({**both, "total_tokens": both["tokens"]})).notes == ()
    with pytest.raises(UserError, match=r"eval/loss or val_bpb.*--map 'loss=eval/loss'"):
        suggest(table({"eval/loss": [3.0], "val_bpb": [0.9], "N": [1e7], "D": [1e9]}))


def test_an_arch_has_several_sizes() -> None:
    sizes = {"N": [1e7, 2e7, 1e7, 2e7], "D": [1e9] * 4, "loss": [3.0, 2.9, 3.1, 2.8]}
    depth = chosen({**sizes, "model_tag": ["d12", "d20", "d12", "d20"]})
    assert (depth.arch_name, "arch" in depth.columns) == ("mine", False)
    archs = chosen({**sizes, "model_tag": ["dense", "dense", "moe", "moe"]})
    assert (archs.arch_name, archs.columns["arch"]) == (None, "model_tag")


def test_a_table_of_steps_is_told_from_a_table_of_runs() -> None:
    steps = {
        "run": list("aabb"),
        "step": [1, 2, 1, 2],
        "loss": [4.0, 3, 4, 2],
        "N": [1e7, 1e7, 2e7, 2e7],
    }
    assert chosen({**steps, "D": [1e8, 2e8] * 2}).run == "run"
    # The same size again with other steps is a sweep: N differs within a name.
    assert chosen({**steps, "N": [1e7, 2e7, 1e7, 2e7], "D": [1e8] * 4}).run is None
    assert chosen({**steps, "run": list("abcd"), "D": [1e8] * 4}).run is None


def test_products() -> None:
    names = ["flops / token", "a", "eval/loss"]
    one, two, three = terms_of("x", "a / 6 * flops / token", ["a", "flops", "token"])[0:3]
    assert (one.column, two.number, two.is_divisor, three.column) == ("a", 6.0, True, "flops")
    assert terms_of("x", "flops / token", names)[0].column == "flops / token"
    assert terms_of("x", "eval/loss", names)[0].column == "eval/loss"
    with pytest.raises(UserError, match=r"eval/los.*write eval/loss"):
        terms_of("loss", "eval/los", names)
    with pytest.raises(UserError, match="add the blanks"):
        terms_of("x", "a*2", ["a"])
    with pytest.raises(UserError, match="a product of columns"):
        terms_of("x", "6 * 7", names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": {"n_param": "N"}}, "write n_params"),
        ({"columns": {"a b": "N"}}, "letters, digits"),
        ({"columns": {"warnings": "N"}}, "column of runs"),
        ({"columns": {"loss": "a"}, "parse": {"name": "{loss}"}}, "one place"),
        ({"columns": {"arch": "a"}, "arch_name": "b"}, "no column has it"),
        ({"arch_name": "a\x1b[2J"}, "control characters"),
        ({"loss_unit": "a\nb"}, "a unit"),
        ({"flops_unit": "mips"}, "gflop"),
        ({"parse": {"name": "no field"}}, "a name in braces"),
        ({"parse": {"name": "{a}{b}"}}, "text between"),
        ({"parse": {"name": "{a}-{a}"}}, "once"),
        ({"parse": {"name": "{a}-{b"}}, "names in braces"),
        ({"parse": {"name": "{0}-{b}"}}, "names in braces"),
        ({"take": "first"}, "'last', 'best'"),
        ({"columns": ["loss"]}, "a table"),
        ({"columns": {"loss": 3}}, "text"),
        ({"where": "loss > 3"}, "list"),
        ({"run": {}}, "text"),
        ({"code": "import os"}, "known key"),
        ({"budget_from": "column"}, "flops"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        validated(ColumnMap, values)
    assert "\n" not in str(caught.value)


def test_a_mapping_is_the_same_after_json() -> None:
    mapping = ColumnMap(
        columns={"loss": "eval/loss", "n_tokens": "a * b"},
        parse={"Name": "{arch}-{_}"},
        where=("State = finished",),
        run="file",
        take="best",
        budget_from="auto",
    )
    assert validated(ColumnMap, json.loads(json.dumps(asdict(mapping)))) == mapping


def is_number(field: str, text: str) -> bool:
    return field != "n" or text.isdecimal()


def test_names_are_read_by_patterns() -> None:
    pattern = pattern_of("{arch}-{n}-N{size}", "--parse")
    assert pattern.match("my-own-arch-12-N3", is_number) == {
        "arch": "my-own-arch",
        "n": "12",
        "size": "3",
    }
    assert pattern.match("my-own-arch-x-N3", is_number) is None
    ends = pattern_of("lr{n}_{_}", "--parse")
    assert ends.match("lr3_", is_number) == {"n": "3"}
    assert ends.match("xlr3_", is_number) is None
    # No regular expression: dots and stars are themselves.
    assert pattern_of("a.*{n}", "--parse").match("a.*7", is_number) == {"n": "7"}
    assert pattern_of("a.*{n}", "--parse").match("abc7", is_number) is None


@given(st.lists(st.from_regex(r"[a-z0-9.]{1,6}", fullmatch=True), min_size=2, max_size=4))
def test_a_name_made_of_its_parts_is_taken_apart(parts: list[str]) -> None:
    pattern = pattern_of("-".join(f"{{f{i}}}" for i in range(len(parts))), "--parse")
    found = pattern.match("-".join(parts), lambda field, text: True)
    assert found is not None
    assert list(found.values()) == parts


def test_no_name_takes_long() -> None:
    pattern = pattern_of("a".join(f"{{f{i}}}" for i in range(12)) + "b", "--parse")
    tried = []

    def counts(field: str, text: str) -> bool:
        tried.append(field)
        return True

    assert pattern.match("a" * 200, counts) is None
    assert pattern.match("a" * 10**6, counts) is None
    # Of ways to part it there are 200 choose 11.
    assert len(tried) < 12 * 200**2


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("depth > 11", [False, True, True, False]),
        ("depth <= 12", [True, True, False, False]),
        ("depth = 12", [False, True, False, False]),
        ("depth != 12", [True, False, True, True]),
        ("depth =", [False, False, False, True]),
        ("tag = 'a b'", [True, False, False, False]),
        ("tag == c", [False, True, True, False]),
        ("x > y = 1", [True, False, False, False]),
        ("size > 1M", [False, True, True, True]),
    ],
)
def test_conditions(condition: str, expected: list[bool]) -> None:
    frame = pd.DataFrame(
        {
            "depth": ["8", "12", "20", ""],
            "tag": ["a b", "c", "c", None],
            "x > y": [1, 2, 3, 4],
            "size": ["900k", "2M", "3,000,000", "1e9"],
        }
    )
    assert meets(frame, list(frame.columns), condition).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("tag > 3", r"column of numbers.*'a'"),
        ("depth > deep", "NUMBER"),
        ("dept > 3", "write depth"),
        ("depth", "COLUMN OP VALUE"),
    ],
)
def test_conditions_that_cannot_be(condition: str, message: str) -> None:
    frame = pd.DataFrame({"depth": ["8", "12"], "tag": ["a", "b"]})
    with pytest.raises(UserError, match=message):
        meets(frame, list(frame.columns), condition)


def notes(columns: dict[str, Any]) -> str:
    return "\n".join(suggest(table(columns)).notes)


SIZES = {"params": [1e7, 2e7] * 2, "tokens": [1e9] * 4}


def test_a_loss_by_another_name_is_taken_where_only_one_column_can_be_it() -> None:
    beside = {"results.loss_tokens_lower_95": [2.9], "lr": [0.1]}
    assert chosen({**beside, "smooth loss": [3.0]}).columns["loss"] == "smooth loss"
    assert chosen({**beside, "c4/loss": [3.0], "results.loss": [3.0]}).columns["loss"] == (
        "results.loss"
    )
    several = {"train/CrossEntropyLoss": [3.0], "eval/c4/CrossEntropyLoss": [3.1], "x": [1]}
    with pytest.raises(UserError, match=r"add --map 'loss=eval/c4/CrossEntropyLoss', or another$"):
        suggest(table(several))


def test_a_loss_of_training_names_what_may_be_held_out() -> None:
    columns = {"train/loss": [3.0], "eval/paloma/c4_en/bpb": [1.1], "grad_loss_norm": [1.0]}
    (note,) = suggest(table(columns)).notes
    assert note.endswith("what may be held out: eval/paloma/c4_en/bpb (--map loss=COLUMN)")
    assert notes({"val_loss": [3.0], "train/loss": [3.0]}) == ""


def test_losses_that_hardly_are_nats_per_token_ask_for_a_unit() -> None:
    assert "--loss-unit bits_per_byte, bits_per_token" in notes({"loss": [0.92, 0.7]})
    assert "--loss-unit perplexity?" in notes({"loss": [33.0, 21.0]})
    assert notes({"val_bpb": [0.92, 0.7]}) == notes({"loss": [1.7, 14.0]}) == ""


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["isoflop-1e+18-d512", "isoflop-3e+18-d640"], "isoflop-{budget_flops}-{_}"),
        (["mlp_1e17", "swiglu_3e17"], "{arch}_{budget_flops}"),
        (["a-1e17-w1", "a-final"], None),
        (["lr5e-05", "lr3e-04"], None),
        (["a-1e17-w1", "a-1e17-w2"], None),
        (["{a}-1e17", "{a}-1e18"], None),
    ],
)
def test_budgets_in_names_are_pointed_out(names: list[str], pattern: str | None) -> None:
    found = notes({"loss": [3.0, 2.9], "Name": names})
    assert found == (
        f"budget_flops: may stand in Name: --parse 'Name={pattern}'" if pattern else ""
    )


def test_columns_that_may_tell_archs_apart_are_pointed_out() -> None:
    parted = {**SIZES, "loss": [3.0] * 4, "experiment": ["a", "a", "b", "b"], "host": ["h"] * 4}
    assert notes(parted).endswith("what may tell archs apart: experiment (--arch COLUMN)")
    assert notes({**parted, "arch": ["a", "a", "b", "b"]}) == ""


def test_a_column_of_ours_without_a_number_is_not_taken() -> None:
    assert "epochs" not in chosen({"loss": [3.0], "epochs": ["1 epoch"]}).columns
