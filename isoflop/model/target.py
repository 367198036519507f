"""A model built by the user's code, by its name, and counted: `package:build`, `hf:config.json`.

    python -m isoflop.model.target REQUESTS.json ANSWERS.json

is the subprocess of `isoflop.plan.count`, which sets the working folder to that of the code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.accounting.count import Count
from isoflop.errors import UserError, failure_reason
from isoflop.files import read_json, write_json_atomic
from isoflop.model.count import count
from isoflop.model.flop_counter import UncountedOperatorError
from isoflop.model.shapes import building

_TARGETS = ("targets", "labels")
"""What the forward pass of a language model calls its targets; without them nanoGPT's gives the
logits of the last token only."""
_DECLARE = "declare flops_per_token and n_params instead"


def count_target(target: str, values: Mapping[str, Any], seq_len: int, folder: Path) -> Count:
    """Return the count of what a target builds.

    Args:
        target: `package:build`, where build is called with the values and returns a module, or a
            module and its inputs, or these and inputs by name; or `hf:` and the path of a
            configuration of Hugging Face, whose fields the values replace.
        values: by name.
        seq_len: tokens of the sequence that it is counted on.
        folder: where imports and paths start.

    Raises:
        UserError: there is no such target, it cannot be built, or what it builds not counted.
        UncountedOperatorError: something in it is not counted.
    """
    kind, colon, name = target.partition(":")
    if not colon or not kind or not name:
        allowed = "package:build, or hf: and the path of a configuration"
        raise UserError("target", target, allowed, "correct it")
    with building():
        if kind == "hf":
            built = _hugging_face(folder / name, values)
        else:
            built = _attribute(kind, name)(**values)
    module, args, kwargs = _parts(built)
    if not args and not kwargs:
        args, kwargs = _tokens(module, seq_len)
    return count(module, *args, **kwargs)


def _attribute(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        allowed = f"a module that can be imported from {Path.cwd()}"
        raise UserError("target", f"{module}:{name}", allowed, "correct its name") from None
    for part in name.split("."):
        if not hasattr(found, part):
            allowed = f"a function of {module} ({found.__name__} has no {part})"
            raise UserError("target", f"{module}:{name}", allowed, "correct its name")
        found = getattr(found, part)
    if not callable(found):
        allowed = f"a function, not a {type(found).__name__}"
        raise UserError("target", f"{module}:{name}", allowed, "name one that builds the model")
    return found


def _parts(built: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return a module, its inputs and its inputs by name, of what a function built."""
    module, *given = built if isinstance(built, tuple) else (built,)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    for inputs in given:
        if isinstance(inputs, Mapping):
            kwargs |= inputs
        else:
            args += tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if not callable(module):
        allowed = "one that returns a module, or a module and its inputs"
        raise UserError("target", type(module).__name__, allowed, "return the module from it")
    return module, args, kwargs


def _tokens(module: Any, seq_len: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Return token ids, and the same as targets where the module takes them."""
    ids = torch.zeros(1, seq_len, dtype=torch.long, device="meta")
    taken = inspect.signature(getattr(module, "forward", module)).parameters
    kwargs: dict[str, Any] = {name: ids for name in _TARGETS if name in taken}
    if "use_cache" in taken:
        # Of decoding, not of training.
        kwargs["use_cache"] = False
    return (ids,), kwargs


def _hugging_face(path: Path, values: Mapping[str, Any]) -> Any:
    """Return the causal language model of a configuration, or what it says its architecture is."""
    if not path.exists():
        raise UserError("target", f"hf:{path}", "a configuration that is there", "correct its path")
    try:
        import transformers
    except ModuleNotFoundError:
        allowed = "counted where transformers is installed"
        raise UserError("target", f"hf:{path}", allowed, "pip install 'isoflop[hf]'") from None
    config = transformers.AutoConfig.from_pretrained(path)
    for name, value in values.items():
        if not hasattr(config, name):
            allowed = f"a field of {type(config).__name__}"
            raise UserError(name, value, allowed, "correct its name")
        setattr(config, name, value)
    names = getattr(config, "architectures", None) or ()
    kind = getattr(transformers, names[0], None) if names else None
    # Attention written out in products of its own; torch's grouped product wants this type. Neither
    # changes the FLOPs.
    options = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    if kind is None:
        return transformers.AutoModelForCausalLM.from_config(config, **options)
    return kind._from_config(config, **options)


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the count of a request, or what a UserError about it is to say."""
    try:
        counted = count_target(request["target"], request["values"], request["seq_len"], Path.cwd())
    except UncountedOperatorError as error:
        allowed = f"a model of which all work is counted ({', '.join(error.operators)} is not)"
        return {"allowed": allowed, "do": f"{error.why}, or {_DECLARE}", "is_traced": False}
    except UserError as error:
        is_traced = error.__cause__ is not None
        if is_traced:
            traceback.print_exc()
        what = "" if error.field == "target" else f" ({error.field} = {error.value!r})"
        return {"allowed": error.allowed + what, "do": error.do, "is_traced": is_traced}
    except Exception as error:
        # Of the user's code.
        traceback.print_exc()
        allowed = f"code that builds a model ({failure_reason(error)})"
        return {"allowed": allowed, "do": f"mend it, or {_DECLARE}", "is_traced": True}
    return {"count": counted.to_json()}


def main(requests: str, answers: str) -> None:
    """Answer the requests in a file."""
    # After all imports of isoflop and torch, which the user's files are not to hide.
    sys.path.insert(0, str(Path.cwd()))
    write_json_atomic(Path(answers), [_answer(each) for each in read_json(Path(requests), "asked")])


if __name__ == "__main__":
    main(*sys.argv[1:])
