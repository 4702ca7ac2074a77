from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shared.errors import ModelCorruptError, ModelMissingError, UnreadablePictureError
from shared.models import find
from shared.recipe import Recipe
from shared.settings import Settings
from workers.captioning.labels import LabelsModel, Prepared, best_guess
from workers.captioning.none import NoCaptionModel
from workers.captioning.vocabulary import labels
from workers.stage import Work

if TYPE_CHECKING:
    from pathlib import Path

    from workers.stage import Model, Result


@pytest.fixture(scope="module")
def model() -> LabelsModel:
    settings = Settings()
    try:
        find("efficientnet-lite0", settings.models_dir)
    except ModelMissingError:
        pytest.skip("the weights are not here: run `vitrina models fetch`")
    loaded = LabelsModel(settings.models_dir, max_pixels=64_000_000)
    loaded.load("cpu", 1)
    return loaded


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _work(image: Image.Image, **settings: Any) -> Work:
    recipe = Recipe.from_mapping({"caption": {"model": "labels", **settings}})
    return Work("a.jpg", recipe, b"", {"cutout": _png(image)})


def _cutout(color: str = "#d01820", size: tuple[int, int] = (300, 200)) -> Image.Image:
    image = Image.new("RGBA", size, (0, 200, 0, 0))
    ImageDraw.Draw(image).ellipse((40, 30, size[0] - 60, size[1] - 20), fill=color)
    return image


def _sample(name: str) -> Image.Image:
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _run(model: Model[Any, Any], work: Work) -> tuple[Result, dict[str, Any]]:
    item = model.prepare(work)
    (output,) = model.infer([item])
    result = model.finish(work, item, output)
    return result, json.loads(result.artifacts["caption"].data)


def test_the_labels_stand_in_the_order_the_network_was_trained_in() -> None:
    """Our names are better English, but block by block most share a word with ImageNet's, and none do when shifted by one."""
    meta = pytest.importorskip("torchvision.models._meta")
    theirs = [set(name.lower().replace("-", " ").split()) for name in meta._IMAGENET_CATEGORIES]
    ours = [set(label.en.lower().replace("-", " ").split()) for label in labels()]
    assert len(ours) == len(theirs) == 1000
    for start in range(0, 1000, 20):
        block = range(start, start + 20)
        right = sum(bool(ours[i] & theirs[i]) for i in block)
        shifted = sum(bool(ours[i] & theirs[(i + 1) % 1000]) for i in block)
        assert right >= 9, (start, right)
        assert right > shifted, start


def test_known_classes_are_at_their_numbers() -> None:
    """A handful of ImageNet's numbers that everyone knows, without torchvision."""
    names = {
        0: "tench",
        207: "golden retriever",
        281: "tabby cat",
        504: "coffee mug",
        610: "T-shirt",
        805: "soccer ball",
    }
    assert {index: labels()[index].en for index in names} == names
    assert labels()[954].en == "banana"
    assert labels()[999].en == "toilet paper"


@pytest.mark.parametrize(("photo", "expected"), [("coffee", "espresso"), ("camera", "tripod")])
def test_known_photos_get_their_label(model: LabelsModel, photo: str, expected: str) -> None:
    """The weights, the padding and the scale of the levels belong together."""
    result, record = _run(model, _work(_sample(photo).convert("RGBA")))
    assert record["label"]["en"] == expected
    assert record["label"]["confidence"] > 0.5
    assert result.reasons == ()


def test_a_batch_gives_what_single_items_give(model: LabelsModel) -> None:
    """Probabilities differ by float rounding only, under one in a hundred thousand."""
    items = [model.prepare(_work(_cutout(color))) for color in ("#d01820", "#2040d0", "#f0f0f0")]
    batch = model.infer(items)
    for item, together in zip(items, batch, strict=True):
        (alone,) = model.infer([item])
        assert np.abs(alone - together).max() < 1e-5
        assert together.shape == (1000,)
        assert abs(float(together.sum()) - 1) < 1e-4


def test_the_record_holds_captions_label_and_colour(model: LabelsModel) -> None:
    """Everything that a report or an export shows is in the file."""
    result, record = _run(model, _work(_cutout(), min_confidence=0.0))
    assert set(record["captions"]) == {"en", "ru"}
    assert set(record["label"]) == {"index", "en", "ru", "confidence"}
    assert record["color"]["name_en"] == "red"
    assert record["color"]["name_ru"] == "красный"
    assert record["color"]["share"] == 1.0
    assert record["color"]["hex"] == "#d01820"
    assert result.artifacts["caption"].content_type == "application/json"
    assert len(json.dumps(result.measures)) < 1000


def test_an_uncertain_product_is_told_by_colour_and_sent_to_a_person(model: LabelsModel) -> None:
    """Below the recipe's confidence nothing is guessed aloud."""
    result, record = _run(model, _work(_cutout(), min_confidence=1.0, languages=["ru", "en"]))
    assert record["captions"] == {"ru": "Товар красного цвета.", "en": "A red product."}
    assert result.reasons == ("caption_uncertain",)


def test_only_the_languages_asked_for_are_written(model: LabelsModel) -> None:
    """A recipe with one language gives one caption."""
    _, record = _run(model, _work(_cutout(), languages=["en"]))
    assert list(record["captions"]) == ["en"]


def test_colours_under_transparent_pixels_play_no_part(model: LabelsModel) -> None:
    """Straight alpha keeps the old background in the file; the network and the colour never see it."""
    other = _cutout()
    pixels = np.asarray(other).copy()
    pixels[pixels[..., 3] == 0, :3] = (255, 0, 255)
    first, second = (model.prepare(_work(image)) for image in (other, Image.fromarray(pixels)))
    assert (first.views == second.views).all()
    assert first.color == second.color


@pytest.mark.parametrize("size", [(1000, 120), (120, 1000), (110, 100)])
def test_any_shape_of_product_fits_the_input(model: LabelsModel, size: tuple[int, int]) -> None:
    """Long, tall and tiny products keep their proportions in the middle of the square."""
    item = model.prepare(_work(_cutout(size=size)))
    assert item.views.shape == (2, 224, 224, 3)
    assert (item.views[0, :10, :10] == 255).all()
    assert (item.views[1, -10:, -10:] == 0).all()


def test_what_is_no_picture_is_refused(model: LabelsModel) -> None:
    """A damaged cutout is the item's fault, told as such."""
    work = _work(_cutout())
    cut_short = Work(work.key, work.recipe, b"", {"cutout": work.inputs["cutout"][:300]})
    with pytest.raises(UnreadablePictureError):
        model.prepare(cut_short)


def test_a_faint_product_is_still_seen(model: LabelsModel) -> None:
    """Glass that no pixel of the mask holds for opaque has a box and a colour."""
    image = _cutout()
    image.putalpha(image.getchannel("A").point(lambda level: level // 4))
    item = model.prepare(_work(image))
    assert item.color is not None
    assert item.color.name == "red"


def _probabilities(**by_name: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    spread = np.zeros(1000, np.float32)
    for name, value in by_name.items():
        spread[next(i for i, label in enumerate(labels()) if label.en == name.replace("_", " "))] = value
    return spread


def test_the_narrowest_sure_name_is_given() -> None:
    """A sure label, else a sure family, else nothing."""
    sure = best_guess(_probabilities(sandal=0.7, loafer=0.2), 0.5)
    assert (sure.label and sure.label.en, sure.index) == ("sandal", 774)
    family = best_guess(_probabilities(sandal=0.4, loafer=0.3), 0.5)
    assert (family.label and family.label.en, family.index) == ("footwear", None)
    unsure = best_guess(_probabilities(sandal=0.2, hammer=0.3), 0.5)
    assert (unsure.label, unsure.index) == (None, 587)


def test_classes_that_imagenet_has_twice_count_together() -> None:
    """Sunglasses at a third and a third again are sunglasses."""
    spread = np.zeros(1000, np.float32)
    spread[836], spread[837] = 0.3, 0.35
    guess = best_guess(spread, 0.5)
    assert guess.label is not None
    assert guess.label.en == "sunglasses"
    assert guess.confidence == pytest.approx(0.65)
    assert guess.index == 837


def test_a_product_is_never_called_a_place_or_a_page() -> None:
    """A book that the network takes for a website stays unnamed."""
    guess = best_guess(_probabilities(website=0.9, envelope=0.05), 0.5)
    assert guess.label is None


def test_missing_weights_tell_the_next_step(tmp_path: Path) -> None:
    """Nothing is downloaded behind the operator's back."""
    with pytest.raises(ModelMissingError):
        LabelsModel(tmp_path, max_pixels=64_000_000).load("cpu", 1)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """A checkpoint of another network does not load by halves."""
    torch = pytest.importorskip("torch")
    from workers.captioning.efficientnet import read_network  # noqa: PLC0415 - imports torch

    for content in ({"_fc.weight": torch.zeros(2)}, {"layer": torch.zeros(2)}, torch.zeros(3)):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ModelCorruptError):
            read_network(tmp_path / "other.pth")
    (tmp_path / "other.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelCorruptError):
        read_network(tmp_path / "other.pth")


def test_no_caption_is_a_choice() -> None:
    """The item's record is still written, empty of captions, and nothing calls for a person."""
    model = NoCaptionModel()
    work = Work("a.jpg", Recipe.from_mapping({"caption": {"model": "none"}}), b"")
    assert model.reads(work.recipe) == ()
    result, record = _run(model, work)
    assert record == {"captions": {}}
    assert result.reasons == ()
    assert model.bucket(None) == model.bucket(None)


def test_all_items_share_one_bucket() -> None:
    """The views have one shape whatever the photo's."""
    model = LabelsModel(Settings().models_dir, max_pixels=64_000_000)
    item = Prepared(np.zeros((2, 224, 224, 3), np.uint8), None)
    assert model.bucket(item) == 0
    assert model.reads(Recipe()) == ("cutout",)
