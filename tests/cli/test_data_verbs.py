"""`isoflop data …` as a person calls it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.data.storage import write_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a set of local files and the embedded corpus, made by the verb."""
    folder = tmp_path_factory.mktemp("verbs")
    texts = folder / "texts"
    texts.mkdir()
    for index in range(20):
        (texts / f"{index:02d}.txt").write_text(f"Story {index}. " * (index + 1))
    for source in (f"files:{texts}/*.txt", "sotu-embedded"):
        result = invoke("prepare", source, data_dir=folder / "data")
        assert result.exit_code == 0, result.output
        first, *_ = result.output.splitlines()
        assert Path(first.removeprefix("ready: ")).parent == folder / "data"
    return folder / "data"


def invoke(*arguments: str | Path, data_dir: Path) -> Result:
    environment = {"ISOFLOP_DATA_DIR": str(data_dir)}
    return CliRunner().invoke(main, ["data", *map(str, arguments)], env=environment)


def sotu(data_dir: Path) -> Path:
    (folder,) = data_dir.glob("sotu-embedded-*")
    return folder


def test_prepared_again_says_the_same(made: Path) -> None:
    before = sorted(made.rglob("*"))
    result = invoke("prepare", "sotu-embedded", "--workers", "2", data_dir=made)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"ready: {sotu(made)}",
        "1.44M tokens to train on in 35 documents, 150k held out in 4",
        "in a study file:",
        "[data]",
        'source = "sotu-embedded"',
        'tokenizer = "byte"',
    ]
    assert sorted(made.rglob("*")) == before


def study_data(result: Result) -> dict[str, str]:
    """What `prepare` tells to write into a study file."""
    return tomllib.loads(result.output.partition("in a study file:\n")[2])["data"]


@pytest.mark.parametrize("source", ["sotu-embedded", "synthetic:1"])
@pytest.mark.parametrize("place", ["a file", "a folder that refuses"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, source: str, place: str) -> None:
    data_dir = Path("/proc")
    if place == "a file":
        data_dir = tmp_path / "data"
        data_dir.write_text("mine")
    result = invoke("prepare", source, data_dir=data_dir)
    assert result.exit_code == 2, result.output
    assert f"data folder = '{data_dir}': must be a folder that can be written to" in result.output
    assert "set ISOFLOP_DATA_DIR to another" in result.output


def test_what_is_prepared_is_named_so_that_a_study_finds_it(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "Story {index}. {index * 7}"}}\n\n' for index in range(99)))
    (tmp_path / "copy.jsonl").write_bytes(rows.read_bytes())
    data_dir = tmp_path / "data"
    first = invoke("prepare", f"files:{rows}", "--tokens", "1e6", data_dir=data_dir)
    assert "fewer than the 1M asked for: that is the whole source" in first.output
    assert study_data(first) == {"source": f"files:{rows}", "tokenizer": "byte"}
    second = invoke("prepare", f"files:{rows}", data_dir=data_dir)
    (folder,) = re.findall("ready: (.*)", second.output)
    assert study_data(second)["source"] == f"files:{rows}@{folder[-16:]}"
    # The same text under another name has the same data id: the source tells them apart.
    invoke("prepare", f"files:{tmp_path}/copy.jsonl", data_dir=data_dir)
    result = invoke("show", folder[-16:], data_dir=data_dir)
    named = f"files:{rows}@{folder[-16:]}"
    assert result.exit_code == 2
    assert f"{named} with byte" in result.output
    assert invoke("show", named, data_dir=data_dir).exit_code == 0


def test_list_names_sources_and_sets(made: Path) -> None:
    output = invoke("list", data_dir=made).output
    for name in ("sotu-embedded", "slimpajama-627b", "tinystories", "files:GLOB", "hf:NAME"):
        assert name in output
    assert f"prepared, in {made}/SOURCE-ID" in output
    assert sotu(made).name.removeprefix("sotu-embedded-") in output
    listed = json.loads(invoke("list", "--json", data_dir=made).output)
    assert {"sotu", "fineweb-edu"} <= {row["name"] for row in listed["sources"]}
    assert [row["tokenizer"] for row in listed["prepared"]] == ["byte", "byte"]
    assert listed["prepared"][1]["train_tokens"] == 1_444_062
    assert listed["prepared"][1]["folder"] == str(sotu(made))


def test_list_of_nothing_says_so(tmp_path: Path) -> None:
    result = invoke("list", data_dir=tmp_path / "none")
    assert result.exit_code == 0
    assert f"nothing is prepared in {tmp_path / 'none'}" in result.output
    assert not list(tmp_path.iterdir())


def test_show_has_numbers_text_and_epochs(made: Path) -> None:
    result = invoke("show", "sotu-embedded", "--tokens", "1e6, 3e7", data_dir=made)
    assert result.exit_code == 0
    words = [line.split() for line in result.output.splitlines()]
    assert ["train", "35", "1,444,062", "1,444,027", "1.000", "34,371", "219,355"] in words
    assert ["1M", "0.69"] in words
    assert ["30M", "20.77"] in words
    assert "⟨end of document⟩\n[1983-Reagan-1] Mr. Speaker" in result.output
    assert "duplicates 0 (training documents that repeat" in result.output
    shown = json.loads(invoke("show", "sotu-embedded", "--json", data_dir=made).output)
    assert shown["splits"]["heldout"]["num_tokens"] == 149_652
    assert shown["num_duplicates"] == 0


def test_verify_lists_every_file_and_fails_for_a_damaged_one(made: Path, tmp_path: Path) -> None:
    result = invoke("verify", "sotu-embedded", data_dir=made)
    assert result.exit_code == 0
    assert result.output.count("ok ") == 2
    shutil.copytree(made, tmp_path / "data")
    shard = sotu(tmp_path / "data") / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 4
    shard.write_bytes(content)
    result = invoke("verify", "sotu-embedded", data_dir=tmp_path / "data")
    assert result.exit_code == 1
    assert "DAMAGED  train-00000.bin: must be as it was written" in result.output
    assert "ok       heldout-00000.bin" in result.output
    last = result.output.splitlines()[-1]
    assert last.endswith(": 1 damaged; delete the folder and prepare again")
    shard.unlink()
    result = invoke("verify", "sotu-embedded", data_dir=tmp_path / "data")
    assert result.exit_code == 1
    assert "DAMAGED  train-00000.bin: must be an existing file" in result.output


def test_verify_reads_the_table_of_documents_too(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "data")
    (folder,) = (tmp_path / "data").glob("files-*")
    with (folder / "documents-train.parquet").open("ab") as file:
        file.write(b"!")
    result = invoke("verify", folder, data_dir=made)
    assert result.exit_code == 1
    assert "DAMAGED  documents-train.parquet" in result.output


def test_export_writes_documents_or_windows(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "documents.parquet"
    result = invoke("export", "sotu-embedded", "--out", out, data_dir=made)
    assert (result.exit_code, result.output) == (0, f"wrote {out}: 39 documents\n")
    arrow = tmp_path / "windows.arrow"
    options = ("--format", "arrow", "--what", "windows", "--seq-len", "128")
    result = invoke("export", "sotu-embedded", *options, "--out", arrow, data_dir=made)
    assert result.output == f"wrote {arrow}: {11_281 + 1_170:,} windows\n"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["prepare", "nonsense"], "data source = 'nonsense'"),
        (["prepare", "sotu-embedded", "--tokenizer", "words"], "tokenizer = 'words'"),
        (["prepare", "sotu-embedded", "--workers", "0"], "--workers = 0"),
        (["prepare", "synthetic:1", "--tokens", "many"], "--tokens = many: must be a positive"),
        (["prepare", "synthetic:1", "--tokens", "1.5"], "--tokens = 1.5"),
        (["prepare", "synthetic:1", "--tokens", "nan"], "--tokens = nan"),
        (["prepare", "files:nothing/*.txt"], "nothing/\\*.txt.*relative ones begin in /"),
        (["prepare", "files:/"], "it matches a folder: write '/\\*'"),
        (["prepare", "nothing/*.txt"], "write 'files:nothing/\\*.txt' for files"),
        (["prepare", "synthetic:1", "--on-bad-document", "keep"], "--on-bad-document = 'keep'"),
        (
            ["show", "sotu"],
            "data = 'sotu': must be a folder or a set.*run `isoflop data prepare sotu",
        ),
        (["show", "stou"], "data = 'stou'.*run `isoflop data list`"),
        (["show", "sotu-embedded", "--sample", "-1"], "--sample = -1"),
        (["show", "sotu-embedded", "--tokens", "1,x"], "--tokens = x"),
        (["verify", "sotu-embedded", "--tokenizer", "gpt2"], "sotu-embedded / gpt2"),
        (["export", "sotu-embedded", "--format", "csv", "--out", "x"], "--format = 'csv'"),
        (["export", "sotu-embedded", "--out", "no/x"], "--out = 'no/x': must be in a folder"),
    ],
)
def test_nonsense_gets_one_line_and_writes_nothing(
    made: Path, tmp_path: Path, monkeypatch, arguments: list[str], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(made.rglob("*"))
    result = invoke(*arguments, data_dir=made)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("isoflop: ")
    assert re.search(pattern, line)
    assert sorted(made.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["schema", "json", "seal"])
def test_a_folder_that_cannot_be_read_gets_one_line(
    made: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(sotu(made), folder)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    if damage == "schema":
        content = {**json.loads(text), "schema": "isoflop-tokens/99"}
        content.pop("manifest_sha256")
        write_manifest(folder, content)
    else:
        manifest.write_text(text[:-9] if damage == "json" else text.replace("39", "40"))
    for verb in (["show"], ["verify"], ["export", "--out", str(tmp_path / "out")]):
        result = invoke(*verb, folder, data_dir=tmp_path)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert "isoflop-tokens/99" in result.stderr or "manifest" in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_and_plan_import_nothing_heavy() -> None:
    code = (
        "import sys, contextlib\n"
        "from isoflop.cli import main\n"
        "for verb in ([], ['data'], ['data', 'prepare'], ['data', 'list']):\n"
        "    with contextlib.suppress(SystemExit):\n        main([*verb, '--help'])\n"
        "heavy = {'rich', 'numpy', 'torch', 'pyarrow', 'pandas', 'datasets', 'tokenizers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
