import pytest

from conf.compose import compose_config
from conf.errors import UserError
from conf.space import Choices, Interval, override, parse_space


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1,2", Choices("a", ("1", "2"))),
        ("a=1,1,2", Choices("a", ("1", "2"))),
        ("a=choice(x,y)", Choices("a", ("x", "y"))),
        ("a=shuffle(3,1,2)", Choices("a", ("3", "1", "2"))),
        ("a=range(1,7,2)", Choices("a", ("1", "3", "5"))),
        ("a=[1,2],[3]", Choices("a", ("[1,2]", "[3]"))),
        ("a='b,c','d'", Choices("a", ("'b,c'", "'d'"))),
        ("engine=glob(zero*,exclude=zero3)", Choices("engine", ("zero1", "zero2"))),
        ("a=interval(1,3)", Interval("a", 1.0, 3.0, log=False, whole=False)),
        ("a=int(interval(1,3))", Interval("a", 1, 3, log=False, whole=True)),
        ("a=tag(log,interval(1e-5,1e-3))", Interval("a", 1e-5, 1e-3, log=True, whole=False)),
    ],
)
def test_what_varies_is_understood(text: str, wanted: Choices | Interval) -> None:
    assert parse_space(["b=1", text, "c=[1,2]"]) == (["b=1", "c=[1,2]"], [wanted])


@pytest.mark.parametrize(
    "text", ["a=interval(3,1)", "a=tag(log,interval(0,1))", "a=1,(", "engine=glob(q*)"]
)
def test_what_leaves_nothing_to_choose_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space([text])
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a b", "it's", "x=1,2", "a\\", "[1,2]", "/a/b", "a/b,c/d"])
def test_any_text_is_one_value(text: str) -> None:
    fixed, swept = parse_space([override("run", text)])
    assert swept == []
    assert compose_config("report", fixed).run == text
