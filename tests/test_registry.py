import dataclasses

import pytest

from kdjax import registry
from kdjax.config import ConfigError

ENTRIES = [(kind, name) for kind, table in registry.TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=[f"{kind}-{name}" for kind, name in ENTRIES])
def test_every_registered_name_imports(kind, name):
    found = registry.get(kind, name)
    assert callable(found)
    module, _, symbol = registry.TABLES[kind][name].partition(":")
    assert found.__module__.startswith(module)
    assert found.__name__ == symbol


@pytest.mark.parametrize("kind", registry.TABLES)
def test_names_are_sorted_and_say_where_they_live(kind):
    assert registry.names(kind) == sorted(registry.TABLES[kind])
    assert all(target.startswith(f"kdjax.{kind}.") for target in registry.TABLES[kind].values())


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=[f"{kind}-{name}" for kind, name in ENTRIES])
def test_a_mistyped_name_answers_with_the_nearest(kind, name):
    with pytest.raises(ConfigError, match=f"no {kind} entry '{name}_'; did you mean .*'{name}'"):
        registry.get(kind, f"{name}_")


def test_a_strange_name_answers_with_all():
    with pytest.raises(ConfigError, match=f"known: {', '.join(registry.names('tasks'))}$"):
        registry.get("tasks", "zzzz")


def test_ones_own_is_named_by_module_and_symbol():
    registry.trust("dataclasses:dataclass")
    assert registry.get("models", "dataclasses:dataclass") is dataclasses.dataclass
