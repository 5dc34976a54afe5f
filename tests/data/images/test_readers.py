import os
import unicodedata

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from kdjax import registry
from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.images import examples, files, masks
from kdjax.data.images.folders import Folder, Layout
from kdjax.data.images.readers import BusBra, Busi, BusUclm, Union
from tests.support import folders
from tests.support.sources import build, faults


def by_name(source) -> dict:
    return {example["name"]: example for example in map(source.__getitem__, range(len(source)))}


IMAGES = [name for name in registry.names("data") if getattr(registry.get("data", name), "kind", "images") == "images"]


@pytest.mark.parametrize("name", IMAGES)
def test_every_registered_reader_of_images_keeps_the_contract(name, tmp_path):
    dataset = build(name, **folders.BUILDERS[name](tmp_path))
    source = dataset._examples.source
    assert sum(dataset.sizes.values()) == len(source)
    assert min(dataset.sizes.values()) > 0
    together = np.concatenate([dataset._where[split] for split in dataset.sizes])
    assert sorted(together) == list(range(len(source)))
    assert len({source.inspect(i).name for i in range(len(source))}) == len(source) or name == "layout"
    for split, n in dataset.sizes.items():
        example = dataset.example(split, n - 1)
        assert set(example) == {*source.fields, "name"}
        assert example["image"].dtype == np.uint8
        if "mask" in source.fields:
            assert example["image"].shape == (*example["mask"].shape, 3)
            assert example["mask"].max() < dataset.num_classes
        assert example["class"] is None or 0 <= example["class"] < len(dataset.image_classes)
        assert dataset.resized(split, n - 1)["name"] == example["name"]
    batch = next(iter(dataset.train(4, seed=0)))
    assert batch["image"].shape == (4, 16, 16, 3)


def test_busi_joins_masks_and_takes_normal_images_without_one(tmp_path):
    options = folders.busi(tmp_path)
    (tmp_path / "normal" / "normal (2)_mask.png").unlink()
    found = by_name(Busi(**options))
    assert len(found) == 24
    assert found["benign/benign (1)"]["mask"].sum() == 72
    assert found["benign/benign (2)"]["mask"].sum() == 36
    assert found["normal/normal (2)"]["mask"].sum() == 0
    assert [found[f"{n}/{n} (3)"]["class"] for n in ("benign", "malignant", "normal")] == [0, 1, 2]
    three = by_name(Busi(**options, num_classes=3))
    assert set(np.unique(three["benign/benign (1)"]["mask"])) == {0, 1}
    assert set(np.unique(three["malignant/malignant (1)"]["mask"])) == {0, 2}


def test_busi_finds_the_folder_inside_the_archive(tmp_path):
    folders.busi(tmp_path / "Dataset_BUSI_with_GT")
    assert len(Busi(str(tmp_path))) == 24


def test_bus_bra_keeps_both_sides_of_a_patient_together(tmp_path):
    dataset = build("bus_bra", **folders.bus_bra(tmp_path))
    assert dataset.image_classes == ("benign", "malignant")
    sides = [{dataset.example(s, i)["name"][4:8] for i in range(n)} for s, n in dataset.sizes.items()]
    assert sum(map(len, sides)) == 12  # in one split each
    assert set.union(*sides) == {f"{i:04d}" for i in range(12)}


def test_bus_bra_reads_lists_of_splits(tmp_path):
    options = folders.bus_bra(tmp_path)
    (tmp_path / "busbra_train.txt").write_text("".join(f"bus_{i:04d}-{s}.png\n" for i in range(8) for s in "lr"))
    (tmp_path / "busbra_test.txt").write_text("bus_0008-l\nbus_0008-r\nbus_0000-r\n")
    assert "'0000-r' is also in the list of test" in faults("bus_bra", **options)
    (tmp_path / "busbra_test.txt").write_text("bus_0008-l\nbus_0008-r\n")
    dataset = build("bus_bra", **options)
    assert sorted(dataset.example("test", i)["name"] for i in range(2)) == ["bus_0008-l", "bus_0008-r"]
    assert dataset.sizes["train"] + dataset.sizes["val"] == 16
    assert "no val split of its own: taken from train" in dataset.notes[1]
    assert "6 images are in none of the lists" in dataset.notes[0]
    (tmp_path / "busbra_test.txt").write_text("bus_0099-l\n")
    assert "names '0099-l', which has no image" in faults("bus_bra", **options)


def test_bus_bra_without_its_table_has_one_kind_of_lesion(tmp_path):
    options = folders.bus_bra(tmp_path)
    (tmp_path / "bus_data.csv").unlink()
    assert BusBra(**options).classes == ("lesion",)
    assert "three classes need this table" in faults("bus_bra", num_classes=3, **options)


def test_bus_uclm_reads_colours(tmp_path):
    options = folders.bus_uclm(tmp_path)
    two, three = by_name(BusUclm(**options)), by_name(BusUclm(**options, num_classes=3))
    for name, kind, value in (("AAAA_000", 0, 1), ("BBBB_000", 1, 2), ("CCCC_000", 2, 0)):
        assert two[name]["class"] == three[name]["class"] == kind
        assert two[name]["mask"].max() == min(value, 1)
        assert three[name]["mask"].max() == value
    dataset = build("bus_uclm", **options)
    patients = [{dataset.example(s, i)["name"][:4] for i in range(n)} for s, n in dataset.sizes.items()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 12
    folders.blob(tmp_path / "masks" / "AAAA_000.png", [255, 255, 255])
    assert "AAAA_000.png: expected black, green (benign) and red (malignant)" in faults("bus_uclm", **options)


def test_bus_uclm_uses_the_authors_partitions(tmp_path):
    folders.bus_uclm(tmp_path / "partitions" / "train", n=10)
    folders.bus_uclm(tmp_path / "partitions" / "test", n=12)
    for part, names in (("train", ""), ("test", "ABCDEFGHIJ")):
        for path in (tmp_path / "partitions" / part).glob("*/*.png"):
            if path.name[0] in names:
                path.unlink()
    dataset = build("bus_uclm", root=str(tmp_path))
    assert {dataset.example("test", i)["name"][0] for i in range(dataset.sizes["test"])} == {"K", "L"}
    assert dataset.sizes["train"] + dataset.sizes["val"] == 20


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        (("train", "val", "test"), ("img", "label")),
        (("trainning_set", "val_set", "test_set"), ("image", "mask")),
        (("Train", "Valid", "Test"), ("Images", "Masks")),
    ],
)
def test_layout_in_its_spellings(tmp_path, splits, parts):
    for k, split in enumerate(splits):
        for i in range(2 + k):
            folders.picture(tmp_path / split / parts[0] / f"{i}.png", 10 * k + i)
            folders.blob(tmp_path / split / parts[1] / f"{i}.png")
    assert build("layout", root=str(tmp_path)).sizes == {"train": 2, "val": 3, "test": 4}


def test_layout_takes_validation_from_train_never_from_test(tmp_path):
    options = folders.layout(tmp_path)
    for path in [*(tmp_path / "val").glob("*/*"), *(tmp_path / "val").glob("*"), tmp_path / "val"]:
        path.rmdir() if path.is_dir() else path.unlink()
    dataset = build("layout", **options)
    assert dataset.sizes == {"train": 5, "val": 1, "test": 6}
    assert dataset.notes == ("the data set has no val split of its own: taken from train",)


def test_layout_drops_from_train_what_is_in_test(tmp_path):
    options = folders.layout(tmp_path)
    folders.picture(tmp_path / "train" / "img" / "0.png", 200)  # the content of test/img/0.png
    dataset = build("layout", **options)
    assert dataset.sizes == {"train": 5, "val": 6, "test": 6}
    assert dataset.notes == ("1 images of train are left out, as the same image or patient is also in test: 0",)


def test_layout_reads_class_ids(tmp_path):
    options = folders.layout(tmp_path)
    for split in ("train", "val", "test"):
        for i in range(6):
            folders.blob(tmp_path / split / "label" / f"{i}.png", i % 3)
    values = [example["mask"].max() for example in map(Layout(**options, num_classes=3).__getitem__, range(18))]
    assert sorted(set(values)) == [0, 1, 2]
    found = faults("layout", num_classes=2, **options)
    assert "2.png: expected class ids 0 to 1, found 2; mend the mask or set num_classes=3" in found
    assert found.count("\n") == 6
    assert "found 255; mend the mask or use num_classes=2" in faults(
        "layout", num_classes=3, **folders.layout(tmp_path)
    )


def test_folder_pairs_by_name(tmp_path):
    for i in range(8):
        folders.picture(tmp_path / "a" / f"p{i}_x.jpg", i)
        folders.blob(tmp_path / "b" / f"p{i}_x_seg.png")
        folders.picture(tmp_path / "c" / "images" / f"p{i}_x.bmp", i)
        folders.blob(tmp_path / "c" / "masks" / f"p{i}_x.png", 1)
    two = by_name(Folder(images=str(tmp_path / "a"), masks=str(tmp_path / "b")))
    one = by_name(Folder(root=str(tmp_path / "c")))
    assert set(one) == set(two) == {f"p{i}_x" for i in range(8)}
    assert all(example["mask"].sum() == 36 for example in [*one.values(), *two.values()])
    assert "needs either root, or both images and masks" in faults("folder", images=str(tmp_path / "a"))


def test_folder_knows_patients_by_a_pattern(tmp_path):
    for i in range(8):
        for shot in range(3):
            folders.picture(tmp_path / f"p{i}_{shot}.png", 3 * i + shot)
            folders.blob(tmp_path / f"p{i}_{shot}_mask.png")
    dataset = build("folder", root=str(tmp_path), group=r"(p\d+)_\d")
    patients = [{dataset.example(s, i)["name"][:2] for i in range(n)} for s, n in dataset.sizes.items()]
    assert sum(map(len, patients)) == 8
    assert "does not fit the pattern of patients" in faults("folder", root=str(tmp_path), group=r"(q\d+)_\d")


def test_union_maps_classes_and_joins_copies(tmp_path):
    first, second = folders.busi(tmp_path / "one"), folders.folder(tmp_path / "two")
    folders.picture(tmp_path / "two" / "case0.png", 1)  # the content of benign (1)
    sources = [{"source": "folder", **second}, {"source": "busi", **first}]
    found = by_name(Union(sources=sources))
    union = Union(sources=sources)
    assert union.classes == ("image", "benign", "malignant", "normal")
    assert found["1-busi/malignant/malignant (1)"]["class"] == 2
    for seed in range(4):
        dataset = build("union", sources=sources, split_seed=seed)
        homes = [
            {dataset.example(s, i)["name"] for i in range(n)} & {"0-folder/case0", "1-busi/benign/benign (1)"}
            for s, n in dataset.sizes.items()
        ]
        assert sorted(map(len, homes)) == [0, 0, 2]
    found = faults("union", sources=[{"source": "bussi"}, {"source": "busi", "rot": 1}])
    assert "did you mean 'busi'" in found
    assert "no option 'rot' of 'busi'; did you mean 'root'" in found
    assert "needs sources" in faults("union", sources=[])


def test_sixteen_bit_and_palette_files(tmp_path):
    options = folders.folder(tmp_path)
    wide = np.random.default_rng(0).integers(0, 65536, (20, 24)).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "case0.png")
    palette = Image.fromarray((np.indices((20, 24)).sum(0) % 2).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 9, 200, 9])
    palette.save(tmp_path / "case0_mask.png")
    example = by_name(Folder(**options))["case0"]
    np.testing.assert_array_equal(example["image"][..., 1], wide // 257)
    np.testing.assert_array_equal(example["mask"], np.indices((20, 24)).sum(0) % 2)


# -- pictures as people have them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_image_is_upright_as_its_exif_says(tmp_path, suffix, orientation, turns):
    """Stored on its side or upside down, with the orientation that sets it right."""
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:4, :, 0] = 250
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = str(tmp_path / f"x.{suffix}")
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    upright = files.read_image(path)
    assert upright.shape[:2] == files._header(path, upright=True)[::-1]
    np.testing.assert_allclose(upright.astype(int), np.rot90(stored, turns), atol=60)
    if suffix != "tif":  # which Pillow turns whoever asks
        assert files.read_plane(path).shape[:2] == (16, 24), "a mask is taken as it is"


def test_a_mask_that_was_drawn_on_the_image_as_stored_is_refused(tmp_path):
    options, exif = folders.folder(tmp_path), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(tmp_path / "case0.png").save(tmp_path / "case0.png", exif=exif)
    assert "case0_mask.png: expected 20 x 24 pixels" in faults("folder", **options)


def test_kinds_of_pictures_have_a_rule(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = np.stack([grey, grey + 100, 255 - grey], -1)
    kinds = {
        "grey": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "alpha": (Image.fromarray(np.concatenate([colour, grey[..., None]], -1)), colour),
        "wide": (Image.fromarray(grey.astype(np.uint16) * 1000), np.stack([grey.astype(int) * 1000 // 257] * 3, -1)),
        "low": (Image.fromarray(grey.astype(np.uint16)), np.stack([grey] * 3, -1)),
    }
    for name, (picture, expected) in kinds.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(files.read_image(str(tmp_path / f"{name}.png")), expected, err_msg=name)
    Image.fromarray(grey / np.float32(64)).save(tmp_path / "floats.tif")
    with pytest.raises(ConfigError, match=r"floats.tif: expected 8 or 16 bits a pixel, found floats"):
        files.read_image(str(tmp_path / "floats.tif"))
    frames = [Image.fromarray(grey), Image.fromarray(grey.T)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ConfigError, match=r"moves.gif: .*it holds 2 pictures, expected one"):
        files.read_image(str(tmp_path / "moves.gif"))


@pytest.mark.parametrize(("largest", "bits"), [(900, 10), (4095, 12)])
def test_images_of_fewer_bits_than_their_files_are_told_and_read(tmp_path, largest, bits):
    options = folders.folder(tmp_path)
    stored = np.random.default_rng(0).integers(0, largest + 1, (20, 24)).astype(np.uint16)
    stored[0, 0] = largest
    for i in range(20):
        Image.fromarray(np.roll(stored, i, 0)).save(tmp_path / f"case{i}.png")
    note = (
        f"no pixel of 20 images is above {largest // 257} of 255: nearly black; if they are grey, of {bits} bits in "
        f"files of 16, set the option bits={bits} of the data"
    )
    assert note in build("folder", **options).notes
    dataset = build("folder", bits=bits, **options)
    assert not dataset.notes
    example = by_name(Folder(bits=bits, **options))["case0"]
    np.testing.assert_array_equal(example["image"][..., 2], stored.astype(int) * 255 // (2**bits - 1))
    assert f"case0.png: expected 9 bits a pixel, at most 511, found {largest}" in faults("folder", bits=9, **options)
    assert "bits: expected 8 to 16" in faults("folder", bits=7, **options)


def test_the_rule_of_bits_is_that_of_the_set_and_not_of_an_image(tmp_path):
    """A dark image among others is no brighter than they make it."""
    options = folders.folder(tmp_path)
    for i in range(20):
        Image.fromarray(np.full((20, 24), 200 if i == 0 else 4000 + i, np.uint16)).save(tmp_path / f"case{i}.png")
    images = by_name(Folder(bits=12, **options))
    assert (images["case0"]["image"].max(), images["case1"]["image"].max()) == (12, 249)


@pytest.mark.parametrize("numbers", [np.float32(0.5), np.int32(-1), np.int32(1 << 16), np.int32(70_001)])
def test_masks_of_more_than_16_bits_are_refused(numbers, tmp_path):
    """They would be black, or other classes."""
    path = tmp_path / "mask.tif"
    Image.fromarray(np.full((4, 5), numbers)).save(path)
    with pytest.raises(ConfigError, match=r"mask.tif: expected 8 or 16 bits a pixel, found .*; make it whole numbers"):
        files.read_plane(str(path))


def test_masks_of_16_and_of_few_32_bits_are_taken_as_they_are(tmp_path):
    for kind in (np.uint16, np.int32):
        Image.fromarray(np.array([[0, 1], [2, 300]], kind)).save(tmp_path / "mask.tif")
        np.testing.assert_array_equal(files.read_plane(str(tmp_path / "mask.tif")), [[0, 1], [2, 300]])


def test_names_that_are_not_utf_8_are_found_before_anything_is_trained(tmp_path):
    root = folders.folder(tmp_path / "scans")["root"]
    strange = os.fsdecode(b"case0\xff")
    for end in (".png", "_mask.png"):
        os.rename(f"{root}/case0{end}", f"{root}/{strange}{end}")
    with pytest.raises(ConfigError, match=r"case0\\udcff.png': expected a name in UTF-8, found bytes that are none"):
        pipeline.build(Data("folder", root=root, image_size=16))


@pytest.mark.parametrize("together", [True, False])
def test_folder_reads_what_lies_deeper_and_keeps_the_path(tmp_path, together):
    names = ["x", "a/x", "a/b/ü", ".hidden/x"]
    for i, name in enumerate(names):
        folders.picture(tmp_path / ("" if together else "images") / f"{name}.png", i)
        mask = unicodedata.normalize("NFD", name)  # as a Mac writes it
        folders.blob(tmp_path / (f"{mask}_mask.png" if together else f"masks/{mask}.png"))
    found = by_name(Folder(root=str(tmp_path)))
    assert set(found) == {"x", "a/x", "a/b/ü"}
    assert all(example["mask"].sum() == 36 for example in found.values())
    assert len({example["image"].tobytes() for example in found.values()}) == 3


def test_folder_tells_patients_by_their_folders(tmp_path):
    for i in range(12):
        folders.picture(tmp_path / f"p{i % 4}" / f"{i}.png", i)
        folders.blob(tmp_path / f"p{i % 4}" / f"{i}_mask.png")
    entries = Folder(root=str(tmp_path), group=r"(p\d)/.*").entries
    assert {(entry.name, entry.group) for entry in entries} == {(f"p{i % 4}/{i}", f"p{i % 4}") for i in range(12)}


def test_links_are_followed_and_do_not_go_round(tmp_path):
    folders.picture(tmp_path / "elsewhere" / "x.png", 0)
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "round").symlink_to(tmp_path / "root")
    assert files.listing(tmp_path / "root") == [tmp_path / "root" / "there" / "x.png"]


def test_pictures_that_would_be_left_out_are_refused(tmp_path):
    busi = folders.busi(tmp_path / "busi")
    folders.picture(tmp_path / "busi" / "benign" / "day 2" / "x.png", 99)
    told = faults("busi", **busi)
    assert "benign: expected images in this folder itself, found 1 in folders inside it (day 2/x.png)" in told
    for i in range(8):
        folders.picture(tmp_path / "two" / "images" / f"{i}.png", i)
        folders.blob(tmp_path / "two" / "masks" / f"{i}.png")
    folders.picture(tmp_path / "two" / "images 2" / "x.png", 99)
    told = faults("folder", root=str(tmp_path / "two"))
    assert "1 pictures lie neither in images nor in masks (images 2/x.png); move them, or name" in told
    (tmp_path / "two" / "images" / "9.heic").write_bytes(b"as a telephone writes it")
    told = faults("folder", images=str(tmp_path / "two" / "images"), masks=str(tmp_path / "two" / "masks"))
    assert "9.heic: expected an image, but it cannot be read" in told


def test_a_third_value_of_a_mask_is_no_background(tmp_path):
    options, plane = folders.folder(tmp_path), np.zeros((20, 24), np.uint8)
    plane[2:9, 3:9], plane[12:17, 12:20] = 127, 255
    Image.fromarray(plane).save(tmp_path / "case3_mask.png")
    told = faults("folder", num_classes=2, **options)
    assert "case3_mask.png: expected two values, 0 and 255 or 0 and 1, found 0, 127, 255; mend the mask" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("kind", ["blurred", "jpeg", "supersampled", "hard"])
def test_a_soft_edge_is_no_third_value(tmp_path, kind):
    y, x = np.mgrid[:96, :96]
    disc = np.hypot(y - 47.5, x - 40.2) < 30
    if kind == "supersampled":
        disc = disc.reshape(24, 4, 24, 4).mean((1, 3))
    picture = Image.fromarray((disc * 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(4)) if kind == "blurred" else picture
    path = tmp_path / f"mask.{'jpg' if kind == 'jpeg' else 'png'}"
    picture.save(path)
    plane = files.read_plane(str(path))
    np.testing.assert_array_equal(masks.ids(plane, 2, str(path)), plane > 127)


# -- what can be wrong -----------------------------------------------------------------------------------------------


def test_all_faults_in_one_message(tmp_path):
    options = folders.busi(tmp_path)
    benign = tmp_path / "benign"
    (benign / "benign (2)_mask.png").unlink()
    (benign / "benign (3).png").unlink()
    whole = (benign / "benign (4).png").read_bytes()
    (benign / "benign (4).png").write_bytes(whole[: len(whole) // 2])
    (benign / "benign (5)_mask.png").write_bytes(b"not an image")
    folders.blob(benign / "benign (6)_mask.png", size=(10, 12))
    folders.blob(benign / "benign (7)_mask.png", 7)
    found = faults("busi", augment={"rotat": 0.5, "hflip": 2.0}, **options)
    for line in (
        "no transform 'rotat'; did you mean 'rotate' or 'contrast'?",
        "augment.hflip: expected a probability in [0, 1], found 2.0",
        f"{benign}/benign (2).png: an image without a mask, expected benign (2)_mask.png; add the mask",
        f"{benign}/benign (3)_mask.png: a mask without its image; add the image or remove the mask",
        f"{benign}/benign (4).png: expected an image, but it cannot be read",
        f"{benign}/benign (5)_mask.png: expected an image, but it cannot be read",
        f"{benign}/benign (6)_mask.png: expected 24 x 20 pixels like {benign}/benign (6).png, found 12 x 10",
        f"{benign}/benign (7)_mask.png: expected class ids 0 to 1, found 7",
    ):
        assert line in found
    assert found.count("\n") == 8


def test_missing_and_empty_folders(tmp_path):
    assert f"{tmp_path}/nowhere: expected images in a folder 'benign'" in faults("busi", root=f"{tmp_path}/nowhere")
    assert "found no such folder; set root" in faults("layout", root=f"{tmp_path}/nowhere")
    assert "found an empty folder" in faults("folder", root=str(tmp_path))
    folders.picture(tmp_path / "only.png", 0)
    assert "expected folders train, val and test, with img and label in each, found only.png" in faults(
        "layout", root=str(tmp_path)
    )
    (tmp_path / "train" / "img").mkdir(parents=True)
    (tmp_path / "train" / "label").mkdir()
    assert f"{tmp_path}/train/img: expected images, found an empty folder" in faults("layout", root=str(tmp_path))


def test_a_file_where_a_folder_should_be(tmp_path):
    path = folders.picture(tmp_path / "x.png", 0)
    for name in ("busi", "bus_bra", "bus_uclm", "layout", "folder"):
        assert "found a file" in faults(name, root=str(path))


def test_two_images_of_one_name(tmp_path):
    options = folders.folder(tmp_path)
    folders.picture(tmp_path / "case1.jpg", 99)
    assert "case1.png: the name is taken by case1.jpg; keep one of the two" in faults("folder", **options)


def test_long_lists_of_faults_are_cut(tmp_path):
    for i in range(60):
        folders.picture(tmp_path / f"{i}.png", i)
    found = faults("folder", root=str(tmp_path))
    assert found.endswith("... and 20 more")


def test_masks_of_another_size_can_be_stretched(tmp_path):
    options = folders.folder(tmp_path)
    folders.blob(tmp_path / "case3_mask.png", size=(10, 12), at=(1, 1))
    assert "or set stretch_masks=True" in faults("folder", **options)
    mask = by_name(Folder(**options, stretch_masks=True))["case3"]["mask"]
    expected = np.zeros((20, 24), np.uint8)
    expected[2:14, 2:14] = 1
    np.testing.assert_array_equal(mask, expected)


def test_large_sets_are_checked_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "DECODED", 10)
    monkeypatch.setattr("kdjax.data.images.dataset.DECODED", 10)
    options = folders.folder(tmp_path)
    dataset = build("folder", **options)
    assert "more than 10 files: only headers were checked" in dataset.notes[0]
    whole = (tmp_path / "case4.png").read_bytes()
    (tmp_path / "case4.png").write_bytes(whole[:-40])
    folders.blob(tmp_path / "case3_mask.png", size=(10, 12))
    found = faults("folder", **options)
    assert "found 12 x 10" in found
    assert "case4" not in found
    folders.blob(tmp_path / "case3_mask.png")
    dataset = build("folder", **options)
    with pytest.raises(ConfigError, match=r"case4\.png: expected an image, but it cannot be read"):
        [
            example
            for split, n in dataset.sizes.items()
            for example in map(lambda i: dataset.example(split, i), range(n))
        ]


# -- real images -----------------------------------------------------------------------------------------------------


def test_the_real_busi_subset(reference):
    root = str(reference / "data" / "busi_150" / "raw_subset")
    assert faults("busi", root=root).count("expected 416 x 416 pixels") == 1
    source = Busi(root, stretch_masks=True)
    assert np.bincount([entry.label for entry in source.entries]).tolist() == [12, 12, 4]
    joined = next(e for e in source.entries if e.name == "benign/benign (4)")
    assert len(joined.masks) == 2
    masks = [
        np.asarray(Image.open(path).convert("L").resize((416, 416), Image.Resampling.NEAREST)) for path in joined.masks
    ]
    both = by_name(source)["benign/benign (4)"]["mask"]
    assert both.sum() > (masks[0] > 127).sum() > 0
    np.testing.assert_array_equal(both, (np.maximum(*masks) > 127).astype(np.uint8))
    dataset = build("busi", root=root, stretch_masks=True)
    assert sum(dataset.sizes.values()) == 28


def test_the_real_busi_images_of_256_pixels(reference):
    dataset = build("busi", root=str(reference / "data" / "busi_150" / "img256"))
    assert dataset.sizes == {"train": 104, "val": 23, "test": 22}
    contents = {
        split: {dataset.example(split, i)["image"].tobytes() for i in range(n)} for split, n in dataset.sizes.items()
    }
    assert not contents["train"] & contents["test"]
    assert not contents["val"] & (contents["test"] | contents["train"])
    for split in dataset.sizes:
        for batch in dataset.evaluate(split, 16):
            kinds = batch["class"][batch["valid"]]
            assert ((batch["mask"][batch["valid"]].sum((1, 2)) == 0) == (kinds == 2)).all()
