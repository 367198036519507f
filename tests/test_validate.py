from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

import pytest

from isoflop.errors import UserError
from isoflop.validate import CLOSED, Ge, ReadBy, validated


def _doubled(value: object) -> object:
    if value == "none":
        raise UserError("doubled", value, "a number to double", "write one")
    return 2 * value if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    __pydantic_config__: ClassVar = CLOSED

    name: str
    count: Annotated[int, Ge(1)] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    __pydantic_config__: ClassVar = CLOSED

    parts: tuple[Part, ...] = ()
    share: float = 0.5
    flag: bool = False
    kind: Literal["good", "bad"] = "good"
    sizes: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    doubled: Annotated[int, ReadBy(function=_doubled)] = 0
    nested: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.share > 1:
            raise UserError("share", self.share, "1 or less", "lower it")


def test_a_file_becomes_its_dataclass() -> None:
    values = {"parts": [{"name": "a"}], "share": 1, "sizes": {"x": [1, 2]}, "doubled": 4}
    made = validated(Whole, values)
    assert made == Whole(parts=(Part(name="a"),), share=1.0, sizes={"x": (1, 2)}, doubled=8)
    assert isinstance(made.share, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": 1}, "whole.colour = 1: must be a known key (parts, share, flag, "),
        ({"shares": 1}, "; write share"),
        ({"zzz": 1}, "; remove it"),
        ({"parts": [{"name": "a", "cuont": 2}]}, "whole.parts.0.cuont = 2: must be a known key"),
        ({"parts": [{"nam": "a"}]}, "whole.parts.0.nam = 'a': must be a known key (name, count); "),
        ({"parts": [{}]}, "whole.parts.0.name = None: must be given; add it"),
        ({"parts": [{"name": 1}]}, "whole.parts.0.name = 1: must be text in quotes; correct it"),
        ({"parts": [{"name": "a", "count": 1.5}]}, "count = 1.5: must be a whole number"),
        ({"parts": [{"name": "a", "count": True}]}, "count = True: must be a whole number"),
        ({"parts": [{"name": "a", "count": 0}]}, "count = 0: must be valid (input should be "),
        ({"parts": "a"}, "whole.parts = 'a': must be a list in square brackets"),
        ({"parts": ["a"]}, "whole.parts.0 = 'a': must be a table"),
        ({"share": "half"}, "whole.share = 'half': must be a number"),
        ({"flag": 1}, "whole.flag = 1: must be true or false"),
        ({"kind": "ugly"}, "whole.kind = 'ugly': must be 'good' or 'bad'"),
        ({"nested": {"a": "1"}}, "whole.nested.a = '1': must be a number"),
        # Of the alternatives of a union, the one that was meant.
        ({"sizes": {"x": [1, "2"]}}, "whole.sizes.x.1 = '2': must be a whole number"),
        ({"sizes": [1, "2"]}, "whole.sizes.1 = '2': must be a whole number"),
        # What a function or the class itself refuses comes through.
        ({"doubled": "none"}, "whole.doubled = 'none': must be a number to double; write one"),
        ({"share": 2}, "share = 2.0: must be 1 or less; lower it"),
        ([], "whole = []: must be a table"),
        ({"share": 2, "kind": "ugly"}, "whole.kind = 'ugly'"),
        # Keys called as the alternatives of a union are.
        ({"str": 1}, "whole.str = 1: must be a known key (parts, "),
        ({"list[int]": 1}, "whole.list[int] = 1: must be a known key (parts, "),
        ({"parts": [{"name": "a", "int": 1}]}, "whole.parts.0.int = 1: must be a known key"),
        ({"sizes": {"int": [1, "2"]}}, "whole.sizes.int.1 = '2': must be a whole number"),
        # What JSON lacks.
        (
            {"nested": {"a": date(2024, 1, 2)}},
            "whole.nested.a = datetime.date(2024, 1, 2): must be text in quotes, a number, ",
        ),
        ({"parts": [{"name": "\ud800"}]}, r"whole.parts.0.name = '\ud800': must be text without"),
        ({"nested": {"\ud800": 1}}, r"whole.nested = '\ud800': must be text without"),
    ],
)
def test_a_mistake_is_one_line_with_the_name_of_its_field(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(Whole, values, what="whole")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_to_do_is_the_callers_to_say() -> None:
    said = {"do": "mend it", "do_missing": "restore it", "do_unknown": "drop it"}
    for values, do in (({"name": 1}, "mend it"), ({}, "restore it"), ({"zzz": 1}, "drop it")):
        with pytest.raises(UserError, match=do):
            validated(Part, {"name": "a"} | values if values else values, **said)
