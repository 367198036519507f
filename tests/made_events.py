"""Event files as TensorBoard's writers leave them, for tests."""

from __future__ import annotations

import time
from pathlib import Path


def write_events(
    folder: Path,
    *values: tuple[str, float, int],
    as_tensors: bool = False,
    begin_s: float | None = None,
) -> None:
    """Write scalars into a new event file, as torch does or as tf.summary does.

    Args:
        folder: of the file.
        values: tag, value and step of each.
        as_tensors: as tf.summary does.
        begin_s: time of the first, in seconds since 1970; the others follow by a second. None: now.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    writer = EventFileWriter(str(folder), filename_suffix=f".{time.time_ns()}")
    for number, (tag, value, step) in enumerate(values):
        as_value = {"tensor": make_tensor_proto(value)} if as_tensors else {"simple_value": value}
        summary = Summary(value=[Summary.Value(tag=tag, **as_value)])
        writer.add_event(
            Event(
                wall_time=time.time() if begin_s is None else begin_s + number,
                step=step,
                summary=summary,
            )
        )
    writer.close()


def write_hparams(folder: Path, hparams: dict[str, object], *, status: int = 1) -> None:
    """Write hyperparameters, as torch's `add_hparams` does; status 1: success, 2: failure."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    start, end = HParamsPluginData(), HParamsPluginData()
    for name, value in hparams.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.session_start_info.hparams[name], kind, value)
    end.session_end_info.status = status
    parts = {metadata.SESSION_START_INFO_TAG: start, metadata.SESSION_END_INFO_TAG: end}
    writer = EventFileWriter(str(folder), filename_suffix=f".{time.time_ns()}")
    for tag, data in parts.items():
        about = metadata.create_summary_metadata(data)
        summary = Summary(value=[Summary.Value(tag=tag, metadata=about)])
        writer.add_event(Event(wall_time=time.time(), summary=summary))
    writer.close()


def write_text(folder: Path, tag: str, text: str) -> None:
    """Write a text, as Hugging Face's Trainer does with its arguments."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto([text.encode()]))
    writer = EventFileWriter(str(folder), filename_suffix=f".{time.time_ns()}")
    writer.add_event(Event(wall_time=time.time(), summary=Summary(value=[value])))
    writer.close()
