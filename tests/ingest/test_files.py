"""Files of tables as others write them: read right, or refused in one line."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.errors import UserError
from isoflop.ingest import files
from isoflop.ingest.files import read_files

ROWS = [{"a": "1", "b": "x"}, {"a": "", "b": "y, z"}]


def read(path: Path, content: bytes | str) -> list[dict[str, Any]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_files(str(path)).frame.to_dict("records")


def refusal(path: Path, content: bytes | str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, content)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def refusal_if_any(path: Path) -> str:
    try:
        read_files(str(path))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'a,b\n1,x\n,"y, z"\n'),
        ("t.csv", '\r\na,b\r\n1,x\r\n\r\n,"y, z"'),
        ("t.csv", '\ufeff"a", b\n1,x\n,"y, z"\n'),
        ("t.csv", "a;b\n1;x\n;y, z\n"),
        ("t.txt", "a|b\n1|x\n|y, z\n"),
        ("t.tsv", "a\tb\n1\tx\n\ty, z\n"),
    ],
)
def test_delimiters_line_ends_and_marks_of_byte_order(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path / name, text) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1, "m": {"p": 2}},\n {"a": NaN, "x": null}]',
        '{"a": 1, "m": {"p": 2}}\n\n{"a": NaN, "x": null}\n',
        '{\n "a": 1,\n "m": {"p": 2}\n}\n{\n "a": NaN,\n "x": null}',
        '{"runs": [{"a": 1, "m.p": 2}, {"a": NaN, "x": null}]}',
    ],
)
@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t"])
def test_json_of_every_layout(tmp_path: Path, name: str, text: str) -> None:
    first, second = read(tmp_path / name, text)
    assert first == {"a": 1, "m.p": 2, "x": None}
    assert second["a"] != second["a"]
    assert second["m.p"] is None


COLUMNS = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2], "b": ["x", None]},
        {"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": None}},
        {"columns": ["a", "b"], "index": [0, 1], "data": [[1, "x"], [2, None]]},
    ],
    ids=["list", "pandas", "split"],
)
def test_json_of_columns(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path / "t.json", json.dumps(value)) == COLUMNS


def test_one_object_is_one_run_and_objects_by_name_are_runs(tmp_path: Path) -> None:
    run = {"config": {"n": 1}, "summary": {"loss": 3.5, "curve": [4, 3.5]}}
    (row,) = read(tmp_path / "t.json", json.dumps(run))
    assert row == {"config.n": 1, "summary.loss": 3.5, "summary.curve": "[4, 3.5]"}
    rows = read(tmp_path / "t.json", json.dumps({"r1": {"loss": 3}, "r2": {"loss": 4}}))
    assert rows == [{"name": "r1", "loss": 3}, {"name": "r2", "loss": 4}]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize(("suffix", "press"), [(".gz", gzip.compress), (".zst", zstd), ("", zstd)])
def test_compressed_files(tmp_path: Path, ending: str, suffix: str, press: Any) -> None:
    plain = tmp_path / f"plain.{ending}"
    frame = pd.DataFrame({"a": ["1", "2"], "b": ["x", "y"]})
    if ending == "parquet":
        frame.to_parquet(plain)
    elif ending == "csv":
        frame.to_csv(plain, index=False)
    else:
        frame.to_json(plain, orient="records", lines=ending == "jsonl")
    path = tmp_path / f"t.{ending}{suffix}"
    pressed = press(plain.read_bytes())
    assert read(path, pressed) == frame.to_dict("records")
    (file,) = read_files(str(path)).files
    assert (file.sha256, file.num_rows) == (hashlib.sha256(pressed).hexdigest(), 2)


def test_parquet_keeps_whole_numbers_indices_and_what_is_nested(tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": pa.array([2**63 - 1, None], pa.int64()),
            "m": pa.array([{"p": {"q": 1}}, None]),
            "l": pa.array([[1, 2], None]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    frame = read_files(str(tmp_path / "t.parquet")).frame
    assert list(frame) == ["n", "m.p.q", "l"]
    assert frame["n"].to_list() == [2**63 - 1, None]
    pd.DataFrame({"a": [1]}, index=pd.Index(["x"], name="arch")).to_parquet(tmp_path / "i.parquet")
    assert read_files(str(tmp_path / "i.parquet")).frame.to_dict("records") == [
        {"a": 1, "arch": "x"}
    ]


def test_a_pattern_of_files_has_their_names(tmp_path: Path) -> None:
    for i, loss in enumerate(("3.5", "3.25")):
        (tmp_path / f"lr-0.{i}.csv.gz").write_bytes(gzip.compress(f"a\n{loss}\n".encode()))
    raw = read_files(str(tmp_path / "lr-*.csv.gz"))
    assert raw.frame.to_dict("records") == [
        {"source_file": "lr-0.0", "a": "3.5"},
        {"source_file": "lr-0.1", "a": "3.25"},
    ]
    assert [file.num_rows for file in raw.files] == [1, 1]
    for name in ("x/run.json", "y/run.json"):
        read(tmp_path / name, '{"loss": 3}')
    raw = read_files(f"{tmp_path}/**/run.json")
    assert list(raw.frame["source_file"]) == [f"{tmp_path}/{d}/run.json" for d in "xy"]
    read(tmp_path / "mixed.csv", "loss,b\n2.5,x\n")
    mixed = read_files(f"{tmp_path}/**/[mr][iu]*").frame
    assert mixed["loss"].to_list() == ["2.5", 3, 3]
    assert mixed["b"].isna().to_list() == [False, True, True]


PRESSED = gzip.compress(random.Random(3).randbytes(500), mtime=0)


def test_names_with_brackets_and_twice_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "runs[1].csv"
    path.write_text(",loss,loss\n0,1,2\n")
    frame = read_files(str(path)).frame
    assert list(frame) == ["Unnamed: 0", "loss", "loss"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "a table with a header"),
        ("t.csv", " \n\n", "a table with a header"),
        ("t.csv", "a,b\n\n1,2\n3\n", "data row 2"),
        ("t.csv", "a,b\n1,2\n3,4,5\n", "3 cells: must be 2 cells"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', "csv file in UTF-8"),
        ("t.csv", b"a,b\n\xe9,2\n", "utf-8"),
        ("t.csv", b"a,b\n1\x00,2\n", "binary"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("t.xlsx", b"PK\x03\x04rest", "Excel"),
        ("t.pkl", b"\x80\x05\x95", "never loaded"),
        ("t.json", "[1, 2]", "not all are objects"),
        ("t.json", "3", "an object with names"),
        ("t.json", "{}", "an object with names"),
        ("t.json", '{"a": 1, "a": 2}', "two values of 'a'"),
        ("t.json", '{"a.b": 1, "a": {"b": 2}}', "two values of 'a.b'"),
        ("t.json", '{"a": [1, 2], "b": [1]}', "not equally long"),
        ("t.json", '{"columns": ["a"], "data": [[1, 2]]}', "json: a list"),
        ("t.json", '{"columns": 3, "data": [4]}', "no lists"),
        ("t.json", '{"a":' * 60 + "1" + "}" * 60, "nested deeper"),
        ("t.json", "[" * 100_000, "recursion"),
        ("t.json", '{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ("t.jsonl", '{"a": 1}\n{"a": ', "line 2"),
        ("t.parquet", b"", "whole parquet"),
        ("t.csv", b"PAR1 and no more", "whole parquet"),
        ("t.csv.gz", PRESSED[:300], "whole gzip"),
        ("t.csv.zst", b"\x28\xb5\x2f\xfd\x00", "whole zstd"),
    ],
)
def test_what_is_no_table_is_one_line(
    tmp_path: Path, name: str, content: bytes | str, words: str
) -> None:
    assert words in refusal(tmp_path / name, content)


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    for source, words in (
        (tmp_path / "none.csv", "an existing file"),
        (tmp_path / "run-*.csv", "a pattern that matches"),
        (tmp_path, "name the files: '"),
    ):
        with pytest.raises(UserError, match=words):
            read_files(str(source))


def test_no_file_grows_without_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10_000)
    monkeypatch.setattr(files, "MAX_CELLS", 1000)
    assert "decompressed" in refusal(tmp_path / "t.csv.gz", gzip.compress(b"a\n" + b"1" * 20_000))
    assert "decompressed" in refusal(tmp_path / "t.csv", b"a\n" + b"1" * 20_000)
    pq.write_table(pa.table({"a": [0] * 2000}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="at most 1000 cells"):
        read_files(str(tmp_path / "t.parquet"))


def test_thousands_of_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(2_000)]
    text = "\n".join([",".join(names), ",".join(names)])
    assert read(tmp_path / "t.csv", text) == [dict(zip(names, names, strict=True))]


def test_damaged_bytes_are_one_line_or_a_table(tmp_path: Path) -> None:
    rng = random.Random(7)
    pq.write_table(pa.table({"a": ["x", "y"], "b": [1.0, None]}), tmp_path / "w.parquet")
    whole = {
        "t.csv": b'a,b\n"x\ny",2\n1,""\n',
        "t.json": b'[{"a": {"b": 1}}, {"a": null}]',
        "t.csv.gz": gzip.compress(b"a,b\n1,2\n" * 20),
        "t.csv.zst": zstd(b"a,b\n1,2\n" * 20),
        "t.parquet": (tmp_path / "w.parquet").read_bytes(),
    }
    for name, content in whole.items():
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            del damaged[rng.randrange(len(damaged)) :: rng.choice([1, 1000])]
            (tmp_path / name).write_bytes(damaged)
            assert "\n" not in refusal_if_any(tmp_path / name)


def test_of_files_that_match_none_is_left_out_without_a_word(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("loss\n3.0\n")
    # A folder and a pipe of such a name are no files; a link to a file that is gone was one.
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert len(read_files(f"{tmp_path}/*.csv").frame) == 2
    (tmp_path / "c.csv").symlink_to("/scratch/purged.csv")
    with pytest.raises(UserError, match="'/scratch/purged.csv', which is not there"):
        read_files(f"{tmp_path}/*.csv")
