"""What an earlier command measured stays: the GPU may be gone."""

from __future__ import annotations

from pathlib import Path

from isoflop.gpu_report.__main__ import put_aside


def test_results_of_an_earlier_command_are_kept_under_other_names(tmp_path: Path) -> None:
    put_aside(tmp_path)
    assert not list(tmp_path.iterdir())
    for number in (1, 2, 3):
        (tmp_path / "results.jsonl").write_text(f'{{"number": {number}}}\n{{"torn')
        if number != 2:
            (tmp_path / "report.md").write_text(f"{number}")
        put_aside(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "results-1.jsonl": '{"number": 1}\n{"torn',
        "report-1.md": "1",
        "results-2.jsonl": '{"number": 2}\n{"torn',
        "results-3.jsonl": '{"number": 3}\n{"torn',
        "report-3.md": "3",
    }


def test_whatever_has_the_name_makes_way(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").mkdir()
    (tmp_path / "report.md").symlink_to("nowhere")
    put_aside(tmp_path)
    assert (tmp_path / "results-1.jsonl").is_dir()
    assert (tmp_path / "report-1.md").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-1.md", "results-1.jsonl"]
