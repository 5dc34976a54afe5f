import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.config import ConfigError, Mesh
from kdjax.train import checkpoint, sharding
from kdjax.train.step import State

RULES = ((".*", "fsdp"),)


def state(mesh, scale=1.0, width=64):
    params = {"model": {"kernel": scale * jnp.arange(width * 64.0).reshape(width, 64)}, "adapters": {}}
    opt = optax.adam(0.1).init(params)
    made = State(jnp.asarray(7, jnp.int32), params, {"model": {}, "adapters": {}, "losses": {}}, opt, {}, {})
    return sharding.place(made, sharding.shardings(made, mesh, RULES))


@pytest.fixture(scope="module")
def one():
    return sharding.make_mesh(Mesh(data=1))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_checkpoint_comes_back_on_any_mesh(tmp_path, one):
    saved = state(one)
    checkpoint.save(tmp_path, 7, saved, {"epochs": 2, "best": 0.1 + 0.2, "outside": {"n": [1]}, "none": None})
    assert checkpoint.latest(tmp_path) == 7
    assert checkpoint.progress(tmp_path, 7) == {"epochs": 2, "best": 0.1 + 0.2, "outside": {"n": [1]}, "none": None}
    for mesh in (one, sharding.make_mesh(Mesh(data=2, fsdp=4))):
        like = state(mesh, scale=0.0)
        found = checkpoint.restore(tmp_path, 7, like)
        same(found, saved)
        assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)


def test_the_newest_two_are_kept_and_leftovers_go(tmp_path, one):
    checkpoint.save(tmp_path, 3, state(one, 3.0), {"at": 3})
    shutil.copytree(tmp_path / "3", tmp_path / "12.orbax-checkpoint-tmp")  # killed while it was written
    shutil.copytree(tmp_path / "3", tmp_path / "1")  # damaged, and older
    shutil.rmtree(tmp_path / "1" / "state")
    assert checkpoint.latest(tmp_path) == 3
    assert os.listdir(tmp_path) == ["3"]
    for step in (12, 13):
        checkpoint.save(tmp_path, step, state(one, step), {"at": step})
    assert sorted(os.listdir(tmp_path)) == ["12", "13"]
    assert checkpoint.progress(tmp_path, 13) == {"at": 13}


@pytest.fixture(scope="module")
def two(tmp_path_factory, one):
    """A folder of two checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    for step in (6, 8):
        checkpoint.save(folder, step, state(one, step), {"at": step})
    return folder


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def flip(path, bit=0):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "deleted": lambda path: path.unlink(),
    "flipped": lambda path: flip(path, 8 * (path.stat().st_size // 2)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_is_noticed_and_the_one_before_is_kept(two, tmp_path, how):
    for name in files(two / "8"):
        folder = tmp_path / str(name).replace("/", "-")
        shutil.copytree(two, folder)
        if not (folder / "8" / name).stat().st_size:
            continue  # nothing to take away
        DAMAGE[how](folder / "8" / name)
        if str(name) == "progress.json" and how == "deleted":
            continue  # it is as one of an earlier version
        assert f"8/{name}: expected" in checkpoint.fault(folder, 8), name
        assert checkpoint.latest(folder) == 6
        assert sorted(os.listdir(folder)) == ["6", "8"], "nothing is deleted that may still be looked at"


def test_a_damaged_checkpoint_is_written_anew(two, tmp_path, one):
    shutil.copytree(two, tmp_path / "run")
    for name in files(two / "8"):
        (tmp_path / "run" / "8" / name).write_bytes(b"")
    checkpoint.save(tmp_path / "run", 8, state(one, 8.0), {"at": 8})
    assert checkpoint.latest(tmp_path / "run") == 8
    same(checkpoint.restore(tmp_path / "run", 8, state(one, 0.0)), state(one, 8.0))


def test_what_lies_beside_them_is_neither_read_nor_deleted(two, tmp_path, one):
    shutil.copytree(two, tmp_path / "run")
    for name in ("999", "my_backup", "08", "²", "5.json"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run" / "1000").write_text("a file")
    assert checkpoint.latest(tmp_path / "run") == 8
    checkpoint.save(tmp_path / "run", 10, state(one), {"at": 10})
    kept = {"999", "my_backup", "08", "²", "5.json", "1000", "8", "10"}
    assert set(os.listdir(tmp_path / "run")) == kept
    with pytest.raises(ConfigError, match="999: expected nothing where the checkpoint of step 999 goes"):
        checkpoint.save(tmp_path / "run", 999, state(one), {})


def test_one_of_an_earlier_version_opens_as_before(two, tmp_path, one):
    shutil.copytree(two / "8", tmp_path / "8")
    (tmp_path / "8" / "progress.json").unlink()
    assert checkpoint.latest(tmp_path) == 8
    assert checkpoint.progress(tmp_path, 8) == {"at": 8}
    same(checkpoint.restore(tmp_path, 8, state(one, 0.0)), state(one, 8.0))


def test_there_is_none_before_the_first(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    assert checkpoint.latest(tmp_path) is None


def test_a_step_is_saved_once(tmp_path, one):
    checkpoint.save(tmp_path, 3, state(one), {"at": 1})
    checkpoint.save(tmp_path, 3, state(one, 2.0), {"at": 2})
    assert checkpoint.progress(tmp_path, 3) == {"at": 1}


def test_a_full_disk_leaves_the_one_before(tmp_path, one, capfd):
    """Files may not grow beyond a limit, which fails as a full disk does, in the middle of writing."""
    noise = np.random.default_rng(0).normal(size=(512, 64))  # does not compress
    checkpoint.save(tmp_path, 3, state(one), {"at": 3})
    large = state(one, width=512)
    large.params["model"]["kernel"] = jnp.asarray(noise, jnp.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match=r"(?s)could not write the checkpoint of step 5 to .*make room"):
            checkpoint.save(tmp_path, 5, large, {"at": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["3"], "nothing half written fills the disk"
    assert "Traceback" not in "".join(capfd.readouterr())
    same(checkpoint.restore(tmp_path, 3, state(one, 0.0)), state(one))
    checkpoint.save(tmp_path, 5, large, {"at": 5})
    assert checkpoint.latest(tmp_path) == 5
    same(checkpoint.restore(tmp_path, 5, large), large)


def test_a_checkpoint_that_cannot_be_read_says_what_to_do(tmp_path, one):
    checkpoint.save(tmp_path, 3, state(one), {"at": 3})
    shutil.rmtree(tmp_path / "3" / "state")
    with pytest.raises(ConfigError, match=r"(?s)the checkpoint .*3 cannot be read: .*Remove that folder to go on"):
        checkpoint.restore(tmp_path, 3, state(one))
