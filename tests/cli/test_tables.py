"""Texts of a study's folder never act on the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.cli.tables import console_class, escaped_output, new_table, print_lines
from isoflop.files import write_json_atomic
from isoflop.texts import printable
from slurm.made_scheduler import Scheduler, Sent, line, use

# Clears the screen, sets the title, turns the direction of text, begins a line of its own.
HOSTILE = "\x1b[2J\x1b]0;x\x07\u202e\x9b1m\r\nall runs are done"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return use(tmp_path / "bin", monkeypatch)


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    """A study of which every text that is shown is hostile."""
    made = Sent(tmp_path / "study")
    made.submission()
    made.submission(None, tasks=[[1]], rejected=HOSTILE, name="s2")
    made.attempt(0, f"failed: {HOSTILE}", job="12_0", node=HOSTILE)
    made.attempt(2, None)
    made.heartbeat(2, step=1)
    change(made.run(2).path / "attempts" / "0001.json", holder={"host": HOSTILE})
    made.result(3, "diverged")
    change(made.run(3).path / "result.json", status_reason=HOSTILE)
    made.log("12_0", f"{HOSTILE}\n\tat the end\n")
    return made


def change(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    write_json_atomic(path, values)


def shown(*arguments: object) -> Result:
    """With colours on, as at a terminal: click leaves escape sequences in."""
    done = CliRunner().invoke(main, [str(a) for a in arguments], color=True)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    output = done.stdout + done.stderr
    assert all(c.isprintable() or c in "\n\t" for c in output), output
    return done


def test_no_verb_prints_them_as_they_are(sent: Sent, told: Scheduler) -> None:
    told.queue(line("12_1", "PENDING", reason="Resources"))
    status = shown("status", sent.folder).stdout
    assert status.count("\\x1b[2J") >= 2
    assert "\nall runs" not in status
    logs = shown("logs", sent.folder, sent.ids[0]).stdout
    assert "\\x1b[2J" in logs
    assert "\n\tat the end" in logs
    assert "\\nall runs" in shown("cancel", sent.folder, sent.ids[2]).stdout
    told.says("squeue", error=HOSTILE, code=1)
    shown("status", sent.folder)
    shown("fit", sent.folder)


def test_mistakes_that_name_them_do_not_either(sent: Sent, told: Scheduler) -> None:
    (sent.folder / ".launch" / "options.json").write_text(json.dumps({HOSTILE: {HOSTILE: 1}}))
    (sent.run(3).path / "result.json").write_text(json.dumps({"status": HOSTILE}))
    assert "damaged" in shown("status", sent.folder).stdout
    shown("submit", sent.folder, "--cluster", "local", "--dry-run")
    shown("show", sent.folder, HOSTILE)


def test_tables_keep_their_own_sequences_only() -> None:
    out = console_class()(file=io.StringIO(), force_terminal=True, width=80, markup=False)
    table = new_table(("a", "<"))
    table.add_row(HOSTILE)
    out.print(table)
    out.print(HOSTILE, style="bold")
    print_lines(out, [HOSTILE])
    text = out.file.getvalue()
    assert "\x1b[1m" in text
    assert all(sequence not in text for sequence in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\x9b"))
    assert "\\x07\\u202e\\x9b1m\\r\\nall runs are done" in text.splitlines()[-1]


def test_streams_are_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with escaped_output():
        click.echo("a\x1b[1mb\tc\x07")
        print("é\x9b …")
    print("\x1b", end="")
    out = capsys.readouterr().out
    # click itself leaves out sequences where there is no terminal.
    assert out == "ab\tc\\x07\né\\x9b …\n\x1b"
    assert printable("a\nb\u2028", "") == "a\\nb\\u2028"
