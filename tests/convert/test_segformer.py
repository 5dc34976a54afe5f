"""SegFormer's files: variants, the encoders that are published alone, and how training starts from either."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

from convert import families
from convert.export import export_file, load
from convert.family import Converted, ConvertError, build, fit, leaves, write
from convert.originals.published import Published
from convert.sources import Tensor, open_source
from convert.table import slots
from kdjax import launch
from kdjax.config import Experiment, Model
from kdjax.experiment.opening import open_run
from kdjax.models.vision.segformer import VARIANTS
from kdjax.train.setup import initial_shapes
from kdjax.weights import safetensors
from tests.convert.test_families import MIT, Case, original, tensor

FAMILY = families.get("segformer")
GIVEN = {"heads": MIT["heads"], "image_size": MIT["image_size"]}
ENCODER = Model("segformer_encoder", **MIT)
HEAD = (".*/decode_head/.*",)


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Of a checkpoint of this model."""
    return {name: shape for slot in slots(FAMILY.rows(model), leaves(model)) for name, shape in slot.shapes.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_tell_the_published_variants(variant):
    whole = shapes(Model("segformer", variant=variant))
    classifier = "decode_head.classifier.weight"
    for labels, told in (
        (1, {"num_classes": 2}),
        (2, {"num_classes": 2, "binary_logit": False}),
        (150, {"num_classes": 150}),
    ):
        found = FAMILY.model_of(whole | {classifier: (labels, *whole[classifier][1:])})
        assert found == Model("segformer", variant=variant, **told)
    encoder = FAMILY.model_of({name: x for name, x in whole.items() if name.startswith("segformer.")})
    assert encoder == Model("segformer_encoder", variant=variant)


def test_heads_that_no_shape_tells_are_asked_for():
    state = {name: tensor(np.zeros(shape, np.float32)) for name, shape in shapes(Model("segformer", **MIT)).items()}
    with pytest.raises(ConvertError, match=r"tells heads of this segformer; add --set heads=\.\.\."):
        fit(FAMILY, state)
    assert build(fit(FAMILY, state, GIVEN).model) == build(Model("segformer", **MIT))


def theirs(model: Model) -> Any:
    """Of transformers, with random weights, under the names of files."""
    return original(Case("segformer", model))


def tensors(model: Model) -> dict[str, Tensor]:
    return {name: tensor(x.numpy()) for name, x in theirs(model).state_dict().items()}


@pytest.mark.parametrize("kind", [transformers.SegformerModel, transformers.SegformerForImageClassification])
def test_encoders_as_they_are_published(kind, tmp_path):
    """nvidia/mit-b0 has the second form: `segformer.` before the names, and a classifier."""
    made = theirs(ENCODER)
    whole = kind(made.module.config)
    getattr(whole, "segformer", whole).load_state_dict(made.module.state_dict())
    whole.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    classifier = {name for name in source if name.startswith("classifier.")}
    assert len(classifier) == (2 if kind is transformers.SegformerForImageClassification else 0)
    assert all(name.startswith("segformer.") == bool(classifier) for name in source.keys() - classifier)

    found = fit(FAMILY, source, {**GIVEN, "decoder_dim": MIT["decoder_dim"]})
    assert build(found.model) == build(ENCODER)
    assert set(found.dropped) == classifier
    for name, x in made.state_dict().items():
        assert np.array_equal(found.tensors[name].read(), x.numpy()), name


def test_a_saved_state_dict_of_any_version_comes_in(tmp_path):
    """Version 5's modules have other names than its files."""
    made = theirs(Model("segformer", **MIT))
    torch.save(made.module.state_dict(), tmp_path / "inside.pth")
    found = fit(FAMILY, open_source(tmp_path / "inside.pth"), GIVEN)
    for name, x in made.state_dict().items():
        assert np.array_equal(found.tensors[name].read(), x.numpy()), name
    alone = theirs(ENCODER)
    torch.save({f"module.{name}": x for name, x in alone.module.state_dict().items()}, tmp_path / "alone.pth")
    found = fit(FAMILY, open_source(tmp_path / "alone.pth"), GIVEN)
    assert found.tensors.keys() == alone.state_dict().keys()


def test_an_exported_file_is_one_of_transformers(tmp_path):
    """Loaded by from_pretrained, without a tensor too many or too few; of an encoder, in a whole model too."""
    for model in (Model("segformer", **MIT, num_classes=5), ENCODER):
        made = theirs(model)
        write(fit(FAMILY, tensors(model), GIVEN), tmp_path / "ours", {})
        made.module.config.save_pretrained(tmp_path)
        export_file(FAMILY, *load(tmp_path / "ours"), tmp_path / "model.safetensors")
        for kind in {type(made.module), transformers.SegformerForSemanticSegmentation}:
            back, about = kind.from_pretrained(tmp_path, output_loading_info=True)
            added = [name for name in about["missing_keys"] if not name.startswith("decode_head.")]
            assert not added
            assert not about["unexpected_keys"]
            assert bool(about["missing_keys"]) == (kind is not type(made.module))
            after = Published(back, "segformer." if kind is transformers.SegformerModel else "").state_dict()
            assert all(torch.equal(after[name], x) for name, x in made.state_dict().items())


def test_names_of_another_making_are_strangers():
    """The twin speaks the names of files alone, not those in memory, which change with the version."""
    module = theirs(ENCODER)
    state = module.state_dict()
    assert module.load_state_dict(state).missing_keys == []
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(state | {"stages.0.layer_norm.bias": torch.zeros(8)})
    del state["segformer.encoder.layer_norm.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(state)


# -- where training starts -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_published_teacher_starts_from_a_file_of_150_classes():
    teacher = launch.load("configs/segformer_distill.py:busi_b4").stages["teacher"]
    converted = unflatten_dict(leaves(Model("segformer", variant="b4", num_classes=150)), sep="/")
    safetensors.check(initial_shapes(build(teacher.model)), converted, skip=teacher.init_skip)
    alone = unflatten_dict(leaves(Model("segformer_encoder", variant="b4")), sep="/")
    safetensors.check(initial_shapes(build(teacher.model)), alone, skip=HEAD)


@pytest.mark.long
@pytest.mark.parametrize("form", ["150 classes", "encoder"])
def test_a_stage_of_two_classes_starts_from(form, tmp_path):
    """All is the file's but what is skipped, which is fresh, and of the stage's own shape."""
    path = "configs/segformer_distill.py"
    whole, smoke = form == "150 classes", launch.load(f"{path}:smoke")
    skipped = launch.load(f"{path}:busi_b4").stages["teacher"].init_skip if whole else HEAD
    options = smoke.stages["teacher"].model.options
    model = Model("segformer", **options, num_classes=150) if whole else Model("segformer_encoder", **options)
    converted = fit(FAMILY, tensors(model), {name: options[name] for name in ("heads", "image_size")})
    found = started(smoke, converted, tmp_path / "converted.safetensors", skipped)

    expected = flatten_dict(safetensors.load(tmp_path / "converted.safetensors")[0], sep="/")
    fresh = {n for n in found if "decode_head" in n and (not whole or "/classifier/" in n)}
    assert found["params/decode_head/classifier/kernel"].shape == (1, 1, options["decoder_dim"], 1)
    assert len(fresh) == (2 if whole else 15)
    assert found.keys() - fresh == expected.keys() - fresh
    for name in found.keys() - fresh:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def started(experiment: Experiment, converted: Converted, path: Path, skipped: tuple[str, ...]) -> dict[str, Any]:
    """The variables that the teacher's training begins with."""
    write(converted, path, {})
    teacher = replace(experiment.stages["teacher"], init=str(path), init_skip=skipped)
    run = open_run(replace(experiment, stages={"teacher": teacher}, control=False), path.parent / "run")
    learner = run.learners["teacher"]
    state, fixed, _ = learner.start({"": run.files[str(path)]}, {})
    return flatten_dict(learner.whole(state.params, state.collections["model"], fixed["frozen"]), sep="/")
