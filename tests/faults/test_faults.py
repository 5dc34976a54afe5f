"""A short form of the campaign; `python -m tests.faults` is the long one."""

import pytest

from tests.faults import __main__ as campaign

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_every_fault_ends_in_the_same_bits_or_in_a_sentence(tmp_path):
    results = campaign.campaign(tmp_path, {"damage": 24, "kills": 4, "disks": 2}, seed=7)
    assert len(results) >= 24 + 1 + 2
    assert [result for result in results if not result.good] == []
