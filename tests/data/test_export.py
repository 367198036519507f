from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.data import export as export_module
from isoflop.data.export import export
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.windows import TokenData, open_data

TEXTS = [f"Text {i}: " + "wörd " * i for i in range(23)]


@pytest.fixture(scope="module", params=["byte", "bpe:265"])
def data(request: Any, tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    folder = tmp_path_factory.mktemp("export")
    for index, text in enumerate(TEXTS):
        (folder / f"{index:02d}.txt").write_text(text)
    source = f"files:{folder}/*.txt"
    return open_data(prepare(source, request.param, folder / "data", options=PrepareOptions()))


def read(path: Path, format: str) -> pa.Table:
    return pq.read_table(path) if format == "parquet" else pa.ipc.open_file(path).read_all()


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 2**22])
def test_documents_come_back_as_they_were(
    data: TokenData, tmp_path: Path, monkeypatch, format: str, batch_tokens: int
) -> None:
    monkeypatch.setattr(export_module, "_BATCH_TOKENS", batch_tokens)
    told: list[tuple[int, int]] = []
    out = tmp_path / "out"
    rows = export(data, out, format=format, on_progress=lambda *now: told.append(now))
    table = read(out, format)
    assert rows == table.num_rows == len(TEXTS)
    assert dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == {
        f"{index:02d}.txt": text for index, text in enumerate(TEXTS)
    }
    assert table["num_bytes"].to_pylist() == [len(t.encode()) for t in table["text"].to_pylist()]
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    for split in ("train", "heldout"):
        part = table.filter(pa.compute.equal(table["split"], split))
        assert part["document"].to_pylist() == list(range(part.num_rows))
        stream = np.fromfile(data.folder / f"{split}-00000.bin", dtype="<u2")
        assert part["tokens"].combine_chunks().flatten().to_pylist() == stream.tolist()
    total = sum(split["num_tokens"] for split in data.manifest["splits"].values())
    assert told[-1] == (total, total)
    assert table.schema.metadata[b"data_id"].decode() == data.identity.data_id
    assert table.schema.metadata[b"isoflop_schema"] == b"isoflop-export/1 documents"


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("batch_tokens", [1, 70, 2**22])
def test_windows_are_those_that_are_trained_and_evaluated_on(
    data: TokenData, tmp_path: Path, monkeypatch, format: str, batch_tokens: int
) -> None:
    monkeypatch.setattr(export_module, "_BATCH_TOKENS", batch_tokens)
    out = tmp_path / "out"
    export(data, out, format=format, what="windows", seq_len=8)
    table = read(out, format)
    assert table.schema.field("tokens").type == pa.list_(pa.uint16(), 8)
    found = {
        split: np.array(table.filter(pa.compute.equal(table["split"], split))["tokens"].to_pylist())
        for split in ("train", "heldout")
    }
    assert np.array_equal(found["heldout"], data.heldout(8).tokens)
    windows = data.train_windows(8)
    index = windows.window_index(3, 4, seed=1)
    assert np.array_equal(found["train"][index], windows.batch(3, 4, seed=1))
    assert len(found["train"]) == windows.num_windows


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_the_file_is_compressed_by_zstd(data: TokenData, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    export(data, out, format=format)
    if format == "parquet":
        assert pq.ParquetFile(out).metadata.row_group(0).column(0).compression == "ZSTD"
    else:
        plain = tmp_path / "plain"
        table = read(out, format)
        with pa.ipc.new_file(plain, table.schema) as writer:
            writer.write_table(table)
        assert out.stat().st_size < plain.stat().st_size


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"format": "csv"}, "--format = 'csv': must be parquet or arrow"),
        ({"what": "pages"}, "--what = 'pages'"),
        ({"what": "windows"}, "--seq-len = None"),
        ({"seq_len": 8}, "--seq-len = 8"),
        ({"what": "windows", "seq_len": 0}, "seq_len = 0"),
        ({"what": "windows", "seq_len": 10**6}, "seq_len = 1000000"),
    ],
)
def test_nonsense_is_refused_and_writes_nothing(
    data: TokenData, tmp_path: Path, refused, options: dict[str, Any], pattern: str
) -> None:
    with refused(pattern):
        export(data, tmp_path / "out", **{"format": "parquet", **options})
    assert not list(tmp_path.iterdir())


def test_a_file_is_never_replaced(data: TokenData, tmp_path: Path, refused, monkeypatch) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with refused("--out = .*does not exist yet"):
        export(data, out, format="parquet")
    # It may also appear while the export is at work.
    monkeypatch.setattr(export_module, "_check", lambda *args: None)
    with refused("--out = .*does not exist yet"):
        export(data, out, format="parquet")
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_not_there_is_named(data: TokenData, tmp_path: Path, refused) -> None:
    with refused("--out = .*in a folder that exists"):
        export(data, tmp_path / "no" / "out", format="arrow")
