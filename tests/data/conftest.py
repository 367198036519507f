"""A prepared copy of the embedded corpus, and corpora made up in a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isoflop.data.corpus import Document, build_manifest, write_corpus
from isoflop.data.prepare import prepare
from isoflop.errors import UserError


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("sotu-embedded", "byte", tmp_path_factory.mktemp("data"))


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / prepared.name
    shutil.copytree(prepared, folder)
    return folder


@pytest.fixture
def make_corpus() -> Callable[..., Path]:
    """Puts texts where the fetched corpus ``sotu`` lies."""

    def make(data_dir: Path, texts: list[bytes], prefix: str = "doc", title: str = "t") -> Path:
        folder = data_dir / "corpus" / "sotu"
        folder.mkdir(parents=True)
        documents = [
            Document(document_id=f"{prefix}{index}", text=text, details={"title": title})
            for index, text in enumerate(texts)
        ]
        header = {"name": "sotu", "licence": "none", "origin": {}}
        write_corpus(folder, build_manifest(header, documents), documents)
        return folder

    return make


@pytest.fixture
def refused() -> Callable[[str], object]:
    """Expects a UserError of one line that matches a pattern."""

    @contextmanager
    def expect(pattern: str) -> Iterator[None]:
        with pytest.raises(UserError, match=pattern) as caught:
            yield
        assert "\n" not in str(caught.value)

    return expect


def texts(num_documents: int, length: int = 40) -> list[bytes]:
    """Different short documents; lengths differ too."""
    return [f"document {index} ".encode() * (1 + index % length) for index in range(num_documents)]


@pytest.fixture
def some_texts() -> list[bytes]:
    return texts(25)
