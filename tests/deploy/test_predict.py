"""What a finished stage is used for: its scores, and masks for images of any size and kind."""

import errno
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from kdjax import launch
from kdjax.config import ConfigError, Task
from kdjax.data import pipeline
from kdjax.deploy import evaluate, mask_folders, pictures, predict
from kdjax.distill.teachers import build_model
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors
from tests.support import folders
from tests.support.command import command, refused, tiny
from tests.support.folders import picture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir) of the tiny experiment, its student's parameters random, so that masks are neither empty nor
    full."""
    folder = tmp_path_factory.mktemp("run")
    path, workdir = tiny(folder), folder / "work"
    model = build_model(launch.load(str(path)).stages["student"].model)
    variables = jax.tree.map(np.array, initialiser(model)(jax.random.key(3)))
    variables["params"]["decode_head"]["conv_seg"]["kernel"] *= 30
    (workdir / "stages" / "student").mkdir(parents=True)
    safetensors.save(workdir / "stages" / "student" / "model.safetensors", variables)
    return path, workdir


def on(run, *flags):
    path, workdir = run
    return command(f"--config={path}", f"--workdir={workdir}", *flags)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def grey(shape, seed=0):
    """Smooth, as noise would leave nothing when it is resized."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of many kinds and sizes -> their (height, width)."""
    root = tmp_path_factory.mktemp("images")
    (root / "inside" / "deeper").mkdir(parents=True)
    made = {
        "grey.png": Image.fromarray(grey((40, 30))),
        "colour.jpg": Image.fromarray(np.stack([grey((33, 61), s) for s in range(3)], -1)),
        "alpha.PNG": Image.fromarray(np.stack([grey((20, 50), s) for s in range(4)], -1)),
        "sixteen.tif": Image.fromarray(grey((64, 64)).astype(np.uint16) * 257),
        "palette.bmp": Image.fromarray(grey((17, 90))).convert("P"),
        "inside/deeper/small.jpeg": Image.fromarray(grey((5, 3))),
        "inside/large.tiff": Image.fromarray(grey((300, 200))),
    }
    made |= {"web.webp": Image.fromarray(grey((23, 31))), "still.gif": Image.fromarray(grey((12, 45)))}
    for name, image in made.items():
        image.save(root / name)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    made["inside/turned.jpg"] = Image.fromarray(grey((20, 40)))
    made["inside/turned.jpg"].transpose(Image.Transpose.ROTATE_90).save(root / "inside/turned.jpg", exif=exif)
    picture(root / "old_mask.png", 1)
    picture(root / "old_mask_1.png", 1)
    picture(root / "old_overlay.png", 1)
    (root / "notes.txt").write_text("no image")
    return root, {name: image.size[::-1] for name, image in made.items()}


def test_masks_and_overlays_at_the_original_sizes(run, images, tmp_path):
    root, sizes = images
    ended = on(run, "--mode=predict", f"--images={root}", f"--output={tmp_path}/out")
    assert ended.code == 0, ended.error
    assert f"masks and overlays of {len(sizes)} images: {tmp_path}/out" in ended.out
    made = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    stems = {str(Path(name).with_suffix("")) for name in sizes}
    assert made == {f"{stem}_{what}.png" for stem in stems for what in ("mask", "overlay")}
    shares = []
    for name, size in sizes.items():
        target = pictures.named(tmp_path / "out" / Path(name).with_suffix(""), "mask")
        mask = read(target)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        shares.append((mask > 0).mean())
        assert read(target.with_name(target.name.replace("_mask", "_overlay"))).shape == (*size, 3)
    assert 0 < np.mean(shares) < 1


def test_a_second_time_writes_over_its_own(run, images, tmp_path):
    root, _ = images
    flags = ("--mode=predict", f"--images={root}", f"--output={tmp_path}/out")
    assert on(run, *flags).code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    assert on(run, *flags).code == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")} == before


def test_everything_wrong_with_the_images_is_said_before_anything_is_written(run, tmp_path):
    root = tmp_path / "images"
    picture(root / "fine.png", 0)
    cut = picture(root / "cut.png", 1)
    cut.write_bytes(cut.read_bytes()[:60])
    (root / "text.jpg").write_text("no image")
    (root / "telephone.heic").write_text("no image here")
    picture(root / "twice.png", 2)
    picture(root / "twice.bmp", 2)
    truth = picture(root / "fine_mask.png", 3)
    before = truth.read_bytes()
    refused(
        on(run, "--mode=predict", f"--images={root}", f"--output={root}"),
        f"{root}/cut.png: expected an image, but it cannot be read",
        f"{root}/text.jpg: expected an image, but it cannot be read",
        f"{root}/telephone.heic: expected an image, but it cannot be read",
        "would share one mask; rename one of them",
        f"{root}/fine_mask.png: a file that kdjax did not write; choose another --output",
    )
    assert truth.read_bytes() == before
    assert len(list(root.iterdir())) == 7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--mode=predict needs --images=FOLDER"),
        (["--images=nowhere"], "nowhere: expected a folder of images, found no such folder"),
        (["--images=kdjax"], "kdjax: expected images (.png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp, .gif), found none"),
        (["--images=docs", "--stage=studnt"], "--stage=studnt: no such stage; did you mean 'student'"),
        (["--images=docs", "--stage=teacher"], "stage 'teacher' has left no "),
        (["--images=docs", "--weights=none.safetensors"], "none.safetensors: no such file of weights"),
    ],
)
def test_wrong_flags(run, flags, said):
    refused(on(run, "--mode=predict", *flags), said)


def test_no_training_data_is_needed(run, images, tmp_path):
    """The config names a folder of training data that is not there."""
    path, workdir = run
    elsewhere = tmp_path / "elsewhere.py"
    text = (
        path.read_text().replace('"ultrasound"', '"busi"').replace("size=32, train=16, val=8, test=11", "root='gone'")
    )
    elsewhere.write_text(text)
    flags = (f"--config={elsewhere}", f"--workdir={workdir}", f"--images={images[0]}", f"--output={tmp_path}/out")
    assert command("--mode=predict", *flags).code == 0
    refused(command("--mode=eval", *flags[:2]), "gone: expected")


def test_weights_of_another_model_are_refused(run, images, tmp_path):
    flags = ("--mode=predict", f"--images={images[0]}", "--config.stages.student.model.options.neck_dim=12")
    refused(on(run, *flags), "model.safetensors for stage 'student'", "expected (1, 1, 16, 12), found (1, 1, 16, 8)")


@pytest.mark.long
def test_the_same_on_any_mesh(run, images, tmp_path):
    flags = ("--mode=predict", f"--images={images[0]}")
    meshes = {"one": ["--config.mesh.data=1"], "data": [], "fsdp": ["--config.mesh.data=2", "--config.mesh.fsdp=4"]}
    made = {}
    for name, mesh in meshes.items():
        ended = on(run, *flags, f"--output={tmp_path / name}", *mesh)
        assert ended.code == 0, ended.error
        made[name] = [read(p) for p in sorted((tmp_path / name).rglob("*_mask.png"))]
    for masks in made.values():
        assert all((a == b).mean() > 0.999 for a, b in zip(masks, made["one"], strict=True))


def test_one_image_is_enough(run, images, tmp_path):
    root, sizes = images
    ended = on(run, "--mode=predict", f"--images={root / 'grey.png'}", f"--output={tmp_path}/out")
    assert ended.code == 0, ended.error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grey_mask.png", "grey_overlay.png"]
    assert read(tmp_path / "out" / "grey_mask.png").shape == sizes["grey.png"]
    refused(on(run, "--mode=predict", f"--images={root / 'notes.txt'}"), "notes.txt: expected images (.png")


def test_images_of_twelve_bits_are_seen_as_in_training(run, tmp_path):
    path, workdir = run
    (tmp_path / "in").mkdir()
    shown = grey((40, 30))
    Image.fromarray(shown).save(tmp_path / "in" / "eight.png")
    Image.fromarray(np.ceil(shown * (4095 / 255)).astype(np.uint16)).save(tmp_path / "in" / "twelve.png")
    experiment = launch.load(str(path))
    experiment.stages["student"].data.options["bits"] = 12
    predict.predict(experiment, workdir, "", "", tmp_path / "in", tmp_path / "out")
    masks = [read(tmp_path / "out" / f"{name}_mask.png") for name in ("eight", "twelve")]
    np.testing.assert_array_equal(*masks)
    assert evaluate.data_at("some/where", experiment.stages["student"]).options == {"root": "some/where", "bits": 12}


@pytest.mark.parametrize("place", ["{}", "folder:{}", "layout:{}"])
def test_eval_scores_all_of_another_folder(run, tmp_path, place):
    """Or what the folder itself calls its test images."""
    made = folders.layout(tmp_path) if "layout" in place else folders.folder(tmp_path)
    ended = on(run, "--mode=eval", f"--data={place.format(made['root'])}")
    assert ended.code == 0, ended.error
    assert f"on {place.format(made['root'])}: mean" in ended.out
    assert f"{6 if 'layout' in place else 20} test images" in ended.out


def test_eval_says_what_is_wrong_with_another_folder(run, tmp_path):
    refused(on(run, "--mode=eval", f"--data={tmp_path}"), "the data 'folder' cannot be used", str(tmp_path))
    refused(on(run, "--mode=eval", f"--data=fodler:{tmp_path}"), "no data entry 'fodler'; did you mean 'folder'")


def test_other_folders_are_read_by_what_the_task_asks_for(run):
    stage = launch.load(str(run[0])).stages["student"]
    stage.task = Task("classification")
    data = evaluate.data_at("some/where", stage)
    assert (data.source, data.options, data.split) == ("classes", {"root": "some/where"}, (0.0, 0.0, 1.0))
    assert data.image_size == stage.data.image_size
    assert evaluate.data_at("layout:some/where", stage).source == "layout"
    stage.task = Task("detection")
    assert evaluate.data_at("some/where", stage).source == "real_fake"
    stage.task, of_images = Task("autoencoder"), r"\(segmentation, classification, detection\)"
    with pytest.raises(ConfigError, match=rf"--data: expected a task on images {of_images}"):
        evaluate.data_at("some/where", stage)


def test_eval_prints_its_scores_where_nothing_can_be_written(run, monkeypatch):
    def refuse(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(evaluate.kept, "write", refuse)
    ended = on(run, "--mode=eval")
    assert ended.code == 0, ended.error
    assert "11 test images" in ended.out
    assert f"not written to {run[1] / evaluate.RESULTS}: [Errno 30] Read-only file system" in ended.out


def test_eval_agrees_with_predict_and_metrics(run, tmp_path):
    """The test images as files, predicted and compared as folders, get the scores that eval gives."""
    path, workdir = run
    experiment = launch.load(str(path))
    summary, more = evaluate.evaluate(experiment, workdir)
    assert more is None
    (row,) = summary["rows"]
    dataset = pipeline.build(experiment.stages["student"].data)
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    for i in range(dataset.sizes["test"]):
        one = dataset.resized("test", i)
        Image.fromarray(one["image"]).save(tmp_path / "images" / f"{i:02}.png")
        Image.fromarray((one["mask"] * 255).astype(np.uint8)).save(tmp_path / "truth" / f"{i:02}.png")
    assert (
        predict.predict(experiment, workdir, "", "", tmp_path / "images", tmp_path / "out") == 11 == row["test_images"]
    )
    found = mask_folders.compare_folders(tmp_path / "out", tmp_path / "truth", tmp_path / "found.csv", 2, "original")
    assert found["metrics"] == row["metrics"]
    assert 0 < row["metrics"]["dice"]["mean"] < 1


def test_eval_prints_and_writes_the_scores(run):
    _, workdir = run
    ended = on(run, "--mode=eval")
    assert ended.code == 0, ended.error
    table = (workdir / evaluate.RESULTS).read_text()
    assert f"{workdir}/stages/student/model.safetensors on ultrasound" in table
    assert "11 test images" in table
    assert table in ended.out
    weights = workdir / "stages" / "student" / "model.safetensors"
    other = on(run, "--mode=eval", "--stage=teacher", f"--weights={weights}")
    assert other.code == 0, other.error
    assert table.splitlines()[3:] == (workdir / evaluate.RESULTS).read_text().splitlines()[3:]


def test_logits_are_resized_before_they_are_decided():
    """An edge between two logits lies where they cross, not at the border of a pixel."""
    logits = np.array([[-3.0, 1.0]], np.float32)[..., None]
    assert predict.classes(logits, (1, 8)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    three = np.array([[[2.0, 0.0, -9.0], [0.0, 1.0, -9.0]]], np.float32)
    assert predict.classes(three, (1, 8)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_several_classes_are_written_as_ids(run, images, tmp_path):
    path, workdir = run
    three = tmp_path / "three.py"
    text = path.read_text().replace("image_size=32, **MODEL", "image_size=32, num_classes=3, **MODEL")
    three.write_text(text.replace("batch_size=8,", "batch_size=8, num_classes=3,").replace('"binary_kl"', '"kl"'))
    model = build_model(launch.load(str(three)).stages["student"].model)
    weights = tmp_path / "three.safetensors"
    variables = jax.tree.map(np.array, initialiser(model)(jax.random.key(0)))
    variables["params"]["decode_head"]["conv_seg"]["kernel"] *= 30
    safetensors.save(weights, variables)
    flags = (f"--config={three}", f"--workdir={workdir}", f"--weights={weights}", f"--images={images[0]}")
    ended = command("--mode=predict", *flags, f"--output={tmp_path}/out")
    assert ended.code == 0, ended.error
    ids = np.unique(np.concatenate([read(p).ravel() for p in (tmp_path / "out").rglob("*_mask.png")]))
    assert set(ids) <= {0, 1, 2}
    assert len(ids) > 1


def test_the_picture_says_who_made_it(tmp_path):
    pictures.save(tmp_path / "x_mask.png", np.zeros((3, 4), np.uint8))
    assert pictures.is_ours(tmp_path / "x_mask.png")
    assert not pictures.is_ours(picture(tmp_path / "y_mask.png", 0))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
