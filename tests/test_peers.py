"""A process that cannot join the others says so."""

import pytest

from kdjax.command import peers
from kdjax.config import ConfigError


@pytest.mark.parametrize(
    ("address", "processes", "process", "said"),
    [
        ("node1:1234", 2, 1, ""),
        ("node1:1234", None, 1, "needs --processes=N and --process=I"),
        ("node1", 2, 1, "--coordinator=node1: expected HOST:PORT, such as node1:1234"),
        ("node1:", 2, 1, "expected HOST:PORT"),
        (":1234", 2, 1, "expected HOST:PORT"),
        ("node1:99999", 2, 1, "expected HOST:PORT"),
        ("node1:http", 2, 1, "expected HOST:PORT"),
        ("node1:1234", 2, 2, "--process=2: expected 0 to 1, of --processes=2"),
    ],
)
def test_how_a_process_joins(address, processes, process, said):
    if not said:
        return peers.refuse(address, processes, process)
    with pytest.raises(ConfigError) as refused:
        peers.refuse(address, processes, process)
    assert said in str(refused.value)
