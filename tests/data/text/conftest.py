import pytest


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Tokens are kept for one test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
