import pytest

from conf.errors import UserError
from conf.groups import SourceConfig
from data.sources import build_source


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match=r"^source=moon: "):
        build_source(SourceConfig(kind="moon"))
