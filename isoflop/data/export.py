"""A prepared set as one parquet or Arrow file, to be read by other programs.

``documents``: a row per document, training first, in the order of the tokens::

    split      string           train or heldout
    document   int64            from 0 in its split
    id         string           as the source named it
    num_bytes  int64            of text
    text       string           decoded from the tokens
    tokens     list<uint16>     uint32 for large vocabularies; the end-of-text comes last

``windows``: a row per window, as training (in the order of the text, not of any seed) and
evaluation read them::

    split      string           train or heldout
    window     int64            from 0 in its split
    tokens     list<uint16>[T]  targets; held-out documents are padded with 0 at their end

The schema's metadata name the layout, the data id, the source and the tokenizer. Both formats are
compressed by zstd.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoflop.data.show import open_folder_tokenizer
from isoflop.data.windows import TokenData
from isoflop.disk import fault_of, naming
from isoflop.errors import UserError

EXPORT_SCHEMA = "isoflop-export/1"
FORMATS = ("parquet", "arrow")
WHATS = ("documents", "windows")

# Tokens that are in memory at once, and make up a row group.
_BATCH_TOKENS = 2**22


def export(
    data: TokenData,
    out: Path,
    *,
    format: str,
    what: str = "documents",
    seq_len: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Write ``data`` to the file ``out``, which appears whole or not at all.

    Args:
        data: an open prepared folder.
        out: the file to write.
        format: ``parquet`` or ``arrow`` (an Arrow IPC file).
        what: ``documents`` or ``windows``.
        seq_len: tokens of a window; for windows only.
        on_progress: called with the tokens written so far and those in all.

    Returns:
        The number of rows.

    Raises:
        UserError: ``out`` exists or cannot be written, or the options do not go together.
    """
    _check(out, format, what, seq_len)
    if what == "windows":
        assert seq_len is not None
        schema, batches = _windows(data, seq_len)
    else:
        schema, batches = _documents(data)
    total = sum(split["num_tokens"] for split in data.manifest["splits"].values())
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with naming(out):
            rows = _write(temporary, format, schema, batches, lambda done: on_progress(done, total))
            os.link(temporary, out)
    except FileExistsError:
        raise _exists(out) from None
    except OSError as error:
        if fault_of(error) is not None:
            raise
        raise UserError("--out", str(out), f"writable ({error.strerror})", "correct it") from None
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _check(out: Path, format: str, what: str, seq_len: int | None) -> None:
    for name, value, allowed in (("--format", format, FORMATS), ("--what", what, WHATS)):
        if value not in allowed:
            raise UserError(name, value, " or ".join(allowed), "choose one of them")
    if what == "windows" and seq_len is None:
        raise UserError("--seq-len", seq_len, "given for windows", "add --seq-len 128")
    if what != "windows" and seq_len is not None:
        raise UserError("--seq-len", seq_len, "given for windows only", "add --what windows")
    if out.exists():
        raise _exists(out)
    if not out.parent.is_dir():
        raise UserError("--out", str(out), "in a folder that exists", f"make {out.parent}")


def _exists(out: Path) -> UserError:
    return UserError("--out", str(out), "a file that does not exist yet", "choose another name")


def _write(
    path: Path, format: str, schema: Any, batches: Iterator[Any], on_tokens: Callable[[int], object]
) -> int:
    rows = tokens = 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(_writer(path, format, schema))
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
            tokens += len(batch.column("tokens").flatten())
            on_tokens(tokens)
    return rows


def _writer(path: Path, format: str, schema: Any) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if format == "parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    return pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))


def _metadata(data: TokenData, what: str) -> dict[str, str]:
    return {
        "isoflop_schema": f"{EXPORT_SCHEMA} {what}",
        "data_id": data.identity.data_id,
        "source": data.identity.source,
        "tokenizer": data.identity.tokenizer,
        "tokenizer_hash": data.identity.tokenizer_hash,
    }


def _documents(data: TokenData) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa

    fields = {
        "split": pa.string(),
        "document": pa.int64(),
        "id": pa.string(),
        "num_bytes": pa.int64(),
        "text": pa.string(),
        "tokens": pa.list_(pa.from_numpy_dtype(data.dtype)),
    }
    schema = pa.schema(list(fields.items()), metadata=_metadata(data, "documents"))
    return schema, _document_batches(data, schema)


def _document_batches(data: TokenData, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    tokenizer = open_folder_tokenizer(data)
    for split in ("train", "heldout"):
        stream, documents = data.stream(split), data.documents(split)
        for first, end in documents.groups(_BATCH_TOKENS):
            rows = range(first, end)
            tokens = [
                stream.read(int(documents.token_offset_M[row]), int(documents.num_tokens_M[row]))
                for row in rows
            ]
            columns = [
                [split] * len(rows),
                list(rows),
                data.document_names(split, first, end),
                documents.num_bytes_M[first:end],
                [tokenizer.decode(part) for part in tokens],
                tokens,
            ]
            yield pa.record_batch(
                [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
            )


def _windows(data: TokenData, seq_len: int) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa

    kind = pa.list_(pa.from_numpy_dtype(data.dtype), seq_len)
    fields = [("split", pa.string()), ("window", pa.int64()), ("tokens", kind)]
    schema = pa.schema(fields, metadata=_metadata(data, f"windows of {seq_len}"))
    # Refuses windows that are too short or too long before anything is written.
    sides = (("train", data.train_windows(seq_len)), ("heldout", data.heldout(seq_len)))
    return schema, _window_batches(sides, schema, max(1, _BATCH_TOKENS // seq_len))


def _window_batches(sides: Any, schema: Any, num_rows: int) -> Iterator[Any]:
    import pyarrow as pa

    for split, windows in sides:
        for first in range(0, windows.num_windows, num_rows):
            end = min(first + num_rows, windows.num_windows)
            flat = pa.array(windows.read(first, end).reshape(-1))
            yield pa.record_batch(
                [
                    pa.array([split] * (end - first)),
                    pa.array(range(first, end), pa.int64()),
                    pa.FixedSizeListArray.from_arrays(flat, windows.seq_len),
                ],
                schema=schema,
            )
