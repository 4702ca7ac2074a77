"""Segment Anything's networks and masks against segment-anything's own, on a tiny model of the same classes."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.errors import ModelCorruptError, ModelMissingError
from shared.models import REGISTRY, find
from shared.models.checkpoints import CheckpointModel
from shared.recipe import SamSegmentation
from shared.settings import Settings

pytest.importorskip("segment_anything", reason="the production models' libraries are not installed")

import torch
from made_sam import taught_sam
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from skimage import data
from torch.utils._python_dispatch import TorchDispatchMode

from workers.random_models.sam import TINY_SIDE, build_sam, save_sam
from workers.registry import make_model
from workers.segmentation.sam import generator as generation
from workers.segmentation.sam.drawing import flags, place
from workers.segmentation.sam.generator import Generator, Grid, Masks
from workers.segmentation.sam.networks import Networks, Sizes, build, load
from workers.segmentation.sam.prompts import Prompt
from workers.segmentation.sam.views import cut

CPU = torch.device("cpu")
GRID = Grid(points_per_side=8, min_predicted_iou=0.1, min_stability=0.5, max_overlap=0.7)
SIZES = {"wide": (128, 96), "tall": (90, 120), "square": (110, 110)}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Leave the machine's other cores alone."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "taught_vit_b.pth"
    torch.save(taught_sam().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def generator(checkpoint: Path) -> Generator:
    return Generator(load(checkpoint, CPU, torch.float32))


def photo(size: tuple[int, int] = (128, 96), seed: int = 0) -> Image.Image:
    """Cut a photo out of one of scikit-image's samples."""
    sample = Image.fromarray([data.astronaut, data.coffee, data.chelsea, data.rocket][seed % 4]())
    return sample.resize(size, Image.Resampling.LANCZOS)


def search(generator: Generator, *photos: Image.Image, layers: int = 0, grid: Grid = GRID) -> list[Masks]:
    return generator.everything([cut(each, generator.side, layers) for each in photos], grid)


def library(pixels: np.ndarray, layers: int = 0) -> list[dict[str, Any]]:
    """Return what segment-anything's own generator keeps, with the same settings."""
    masks: list[dict[str, Any]] = SamAutomaticMaskGenerator(
        taught_sam(),
        points_per_side=GRID.points_per_side,
        pred_iou_thresh=GRID.min_predicted_iou,
        stability_score_thresh=GRID.min_stability,
        box_nms_thresh=GRID.max_overlap,
        crop_nms_thresh=GRID.max_overlap,
        crop_n_layers=layers,
    ).generate(pixels)
    return masks


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def assert_same(one: Masks, other: Masks) -> None:
    """Check that two answers hold the same masks in the same order; logits may differ by 0.02 and a step of half precision, which is a thousandth of their value."""
    np.testing.assert_allclose(one.predicted_iou, other.predicted_iou, atol=1e-5)
    np.testing.assert_allclose(one.stability, other.stability, atol=2e-3)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1)
    np.testing.assert_allclose(one.logits.astype(np.float32), other.logits.astype(np.float32), atol=0.02, rtol=2**-10)


@pytest.mark.parametrize("size", ["tiny", "window"])
def test_the_networks_give_the_librarys_numbers(tmp_path: Path, size: str) -> None:
    """Embedding, predicted IoU and logits are those of segment-anything's modules within 1e-4, with random positions and biases."""
    sam = build_sam(seed=3) if size == "tiny" else taught_sam()
    torch.save(sam.state_dict(), tmp_path / "vit_b.pth")
    networks: Networks = load(tmp_path / "vit_b.pth", CPU, torch.float32)
    predictor = SamPredictor(sam)
    predictor.set_image(np.asarray(photo()))
    pixels = torch.zeros(1, TINY_SIDE, TINY_SIDE, 3, dtype=torch.uint8)
    pixels[0, :96] = torch.from_numpy(np.array(photo()))
    features = networks.encoder(pixels, torch.tensor([[96, 128]]))
    torch.testing.assert_close(features, predictor.features, atol=1e-4, rtol=1e-4)

    points = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(1)) * 100
    with torch.no_grad():
        tokens, dense = sam.prompt_encoder((points, torch.ones(6, 2)), None, None)
        positions = sam.prompt_encoder.get_dense_pe()
        masks, scores = sam.mask_decoder(features, positions, tokens, dense, multimask_output=True)
        pictures = features.flatten(2).transpose(1, 2) + networks.prompts.no_mask_embed.weight
        ours, *changed = networks.decoder(pictures, positions[0].flatten(1).T, tokens[None])
        drawn = networks.decoder.draw(*changed)
    torch.testing.assert_close(ours, scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn, masks, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("shape", SIZES)
def test_the_kept_masks_are_the_librarys(generator: Generator, shape: str, layers: int) -> None:
    """Same weights, photo and settings: as many masks as `SamAutomaticMaskGenerator` keeps, each with one of IoU 0.99 or more."""
    image = photo(SIZES[shape])
    (found,) = search(generator, image, layers=layers)
    theirs = library(np.asarray(image), layers)
    assert 5 <= len(theirs) <= 60, "the comparison needs some masks"
    if layers:
        assert (found.view > 0).any(), "and some from crops"
    ours = [place(found, index) > 0 for index in range(len(found.view))]
    assert len(ours) == len(theirs)
    left = list(range(len(ours)))
    for mask in theirs:
        scores = [overlap(ours[index], mask["segmentation"]) for index in left]
        best = int(np.argmax(scores))
        assert scores[best] >= 0.99
        index = left.pop(best)
        assert found.predicted_iou[index] == pytest.approx(mask["predicted_iou"], abs=1e-4)
        assert found.stability[index] == pytest.approx(mask["stability_score"], abs=0.01)
        assert overlap(flags(found, image.size)[index], mask["segmentation"]) > 0.97, "the quick way is near enough"
        x, y, width, height = mask["bbox"]
        np.testing.assert_allclose(found.boxes[index], [x, y, x + width, y + height], atol=1)


def test_a_photo_larger_than_the_encoder_is_measured_reduced(generator: Generator) -> None:
    """Masks of a large photo are, to the pixel, what segment-anything keeps of the same photo at the encoder's size."""
    image = photo((1024, 768))
    (large,) = search(generator, image)
    assert large.views[0].frame == (128, 96)
    theirs = library(large.views[0].pixels)
    assert len(large.view) == len(theirs)
    ours = [place(large, index) > 0 for index in range(len(theirs))]
    for mask in theirs:
        assert max(overlap(one, mask["segmentation"]) for one in ours) >= 0.99


@pytest.mark.parametrize("layers", [0, 1])
def test_a_batch_gives_what_single_photos_give(generator: Generator, layers: int) -> None:
    """Photos of different shapes come out in order, with the masks that each has alone, whatever shares their batch."""
    photos = [photo(size, seed) for seed, size in enumerate(SIZES.values())]
    alone = [search(generator, each, layers=layers)[0] for each in photos]
    for order in ([0, 1, 2], [2, 0, 1, 0]):
        together = search(generator, *(photos[index] for index in order), layers=layers)
        for index, masks in zip(order, together, strict=True):
            assert len(masks.view) > 4
            assert_same(masks, alone[index])


class Waits(TorchDispatchMode):
    """Counts what makes a GPU's caller wait: asking which entries are set, directly or by indexing with flags."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flagged = operation is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += flagged or operation is torch.ops.aten.nonzero.default
        return operation(*args, **(kwargs or {}))


def test_more_photos_and_masks_are_no_more_waits(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos that are decoded together, as a GPU does, cost the waits of one, whatever their shapes and however many of their masks stay."""
    monkeypatch.setattr(generation, "CPU_POINTS", generation.POINTS)
    counts = []
    for photos in ([photo()], [photo(size, seed) for seed, size in enumerate(SIZES.values())]):
        with Waits() as waits:
            search(generator, *photos)
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 6  # three of them are the suppression of duplicates


def test_a_cpu_decodes_few_points_at_once(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published sizes a GPU's share would take ten gigabytes there; the masks are the same."""
    sizes: list[int] = []
    decoder = generator._networks.decoder
    hook = decoder.register_forward_pre_hook(lambda _, given: sizes.append(given[2].shape[:2].numel()))
    try:
        (few,) = search(generator, photo())
        assert sizes == [generation.CPU_POINTS] * 2
        monkeypatch.setattr(generation, "CPU_POINTS", generation.POINTS)
        (all_at_once,) = search(generator, photo())
        assert sizes[2:] == [GRID.points_per_side**2]
    finally:
        hook.remove()
    assert_same(few, all_at_once)


def test_a_photo_without_masks_does_not_disturb_its_batch(generator: Generator) -> None:
    """Nothing passes the filters: the answer is empty, not an error, for one photo and for all."""
    nothing = GRID._replace(min_predicted_iou=0.999)
    assert [len(masks.view) for masks in search(generator, photo(), photo(seed=1), grid=nothing)] == [0, 0]


def test_half_precision_finds_the_same_discs(checkpoint: Path, generator: Generator) -> None:
    """In bfloat16 the best mask is still the same one (IoU 0.9): rounding moves edges, not answers."""
    half = Generator(load(checkpoint, CPU, torch.bfloat16))
    views, prompt = cut(photo(), 128, 0), Prompt(((60, 50, 1),), None)
    masks = [flags(each.prompted(views, [prompt], [(128, 96)])[0], (128, 96))[0] for each in (generator, half)]
    assert overlap(*masks) > 0.9


@pytest.mark.parametrize(
    "prompt",
    [Prompt(((60, 40, 1), (100, 80, 0)), None), Prompt((), (30, 20, 90, 70)), Prompt(((60, 40, 1),), (30, 20, 90, 70))],
    ids=["points", "box", "both"],
)
def test_prompts_are_answered_as_by_the_librarys_predictor(generator: Generator, prompt: Prompt) -> None:
    """The three masks of `SamPredictor`, best predicted IoU first; the prompt counts in pixels of the photo."""
    predictor = SamPredictor(taught_sam())
    predictor.set_image(np.asarray(photo()))
    points = np.array([point[:2] for point in prompt.points]) if prompt.points else None
    labels = np.array([point[2] for point in prompt.points]) if prompt.points else None
    theirs, scores, _ = predictor.predict(points, labels, None if prompt.box is None else np.array(prompt.box))
    large = Prompt(
        tuple((4 * x, 4 * y, label) for x, y, label in prompt.points),
        None if prompt.box is None else tuple(4 * part for part in prompt.box),  # type: ignore[arg-type] # four of them
    )
    views = [cut(photo(), 128, 0)[0]] * 2
    small, four = generator.prompted(views, [prompt, large], [(128, 96), (512, 384)])
    for found in (small, four):
        np.testing.assert_allclose(found.predicted_iou, np.sort(scores)[::-1], atol=1e-4)
        for mask, index in enumerate(np.argsort(-scores)):
            assert overlap(place(found, mask) > 0, theirs[index]) > 0.99


def test_a_checkpoint_is_known_by_its_shapes(tmp_path: Path) -> None:
    """Every size comes from the weights themselves, in both file formats, from a file or its folder."""
    path = save_sam(tmp_path / "anything.pth")
    sizes = load(path, CPU, torch.float32).sizes
    assert (sizes.side, sizes.patch, sizes.width, sizes.depth, sizes.heads) == (128, 16, 32, 3, 4)
    assert (sizes.window, sizes.overall, sizes.variant) == (3, (1,), "vit_32x3")
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(torch.load(path, weights_only=True), folder / "model.safetensors")
    assert load(folder, CPU, torch.float32).sizes == sizes


@pytest.mark.parametrize("variant", ["vit_h", "vit_l", "vit_b"])
def test_the_published_sizes_are_read_right(variant: str) -> None:
    """From the shapes alone, which a model on the meta device has too, come the networks of the published size."""
    with torch.device("meta"):
        weights = sam_model_registry[variant]().state_dict()
    sizes = Sizes.of(weights)
    assert (sizes.variant, sizes.side, sizes.window) == (variant, 1024, 14)
    for network, name in zip(build(sizes), ("image_encoder", "prompt_encoder", "mask_decoder"), strict=True):
        shapes = {f"{name}.{key}": value.shape for key, value in network.state_dict().items()}
        assert shapes == {key: value.shape for key, value in weights.items() if key.startswith(name)}


@pytest.mark.parametrize("name", ["sam-vit-h", "sam-vit-l", "sam-vit-b"])
def test_every_preset_loads_as_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file of the published name and the published digest passes every check on its way into a worker; any other content is refused."""
    record = REGISTRY[name]
    assert isinstance(record, CheckpointModel)
    path = tmp_path / name / record.url.rpartition("/")[2]
    path.parent.mkdir()
    save_sam(path)
    section = SamSegmentation(model="sam", weights=name, prior=False)
    model = make_model("segmentation", section, Settings(models_dir=tmp_path))
    with pytest.raises(ModelCorruptError, match="not the published file"):
        model.load("cpu", 1)
    # The one thing that is not as published: which content the digest is of.
    tiny = dataclasses.replace(record, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(REGISTRY, name, tiny)  # type: ignore[arg-type] # a dict, which others are to take for constant
    assert find(name, tmp_path) == path
    model.load("cpu", 1)


def test_a_published_name_binds_the_content(tmp_path: Path) -> None:
    """Wherever the file lies; a name of one's own, however alike, binds nothing."""
    path = save_sam(tmp_path / "sam_vit_h_4b8939.pth")
    with pytest.raises(ModelCorruptError, match="not the published file"):
        load(path, CPU, torch.float32)
    load(path.rename(tmp_path / "sam_vit_h_abcdef.pth"), CPU, torch.float32)


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A pickle that calls something is refused, and nothing is called."""
    path = tmp_path / "vit_b.pth"
    torch.save({"image_encoder": Trap(tmp_path / "ran")}, path)
    with pytest.raises(ModelCorruptError, match="cannot be read"):
        load(path, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the trap itself works"


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1}, protocol=2)], ids=["empty", "junk", "pickle"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vit_b.pth"
    path.write_bytes(content)
    with pytest.raises(ModelCorruptError, match=r"vit_b\.pth"):
        load(path, CPU, torch.float32)


def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    path = save_sam(tmp_path / "vit_b.pth")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ModelCorruptError, match="cannot be read"):
        load(path, CPU, torch.float32)


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    """Weights with a part missing, too much, or of another network altogether."""
    weights = build_sam().state_dict()
    less = {name: value for name, value in weights.items() if "iou_token" not in name}
    for name, state in {"less": less, "other": {"layer.weight": torch.zeros(2)}}.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ModelCorruptError, match="give another checkpoint"):
            load(tmp_path / f"{name}.pth", CPU, torch.float32)


def test_transformers_layout_is_called_by_its_name(tmp_path: Path) -> None:
    """The hub's `facebook/sam-vit-*` are the same networks under other names: the message says what to give instead."""
    save_file({"vision_encoder.pos_embed": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelCorruptError, match="in transformers' layout: give a checkpoint in segment-anything's own"):
        load(tmp_path, CPU, torch.float32)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    """No file, a folder without one, a folder with two."""
    with pytest.raises(ModelMissingError, match="cannot read"):
        load(tmp_path / "none.pth", CPU, torch.float32)
    with pytest.raises(ModelMissingError, match="no checkpoint"):
        load(tmp_path, CPU, torch.float32)
    for name in ("a.pth", "b.pth"):
        save_sam(tmp_path / name)
    with pytest.raises(ModelMissingError, match="2 checkpoints"):
        load(tmp_path, CPU, torch.float32)
