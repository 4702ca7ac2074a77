"""Which of the masks is the product. The catalogue is found by `VITRINA_CATALOGUE`, else beside the repository."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image

from shared.errors import ModelMissingError, NoProductError
from shared.settings import Settings

pytest.importorskip("onnxruntime", reason="the worker's libraries are not installed")

import cv2
from made_candidates import CATALOGUE, SIDE, STEMS, Candidates, ellipse, from_catalogue, true_mask

from workers.segmentation.sam.choice import Choice, choose, seed_background
from workers.segmentation.u2net import U2Net, normalize, to_tensor

needs_catalogue = pytest.mark.skipif(not STEMS, reason=f"no catalogue at {CATALOGUE}: set VITRINA_CATALOGUE")


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@cache
def network() -> U2Net:
    network = U2Net(Settings().models_dir)
    network.load(1)
    return network


@cache
def saliency(stem: str) -> np.ndarray:
    """Return the starter network's map of a catalogue photo, or skip where its weights were not fetched."""
    try:
        photo = Image.open(CATALOGUE / "photos" / f"{stem}.jpg").convert("RGB")
        found = normalize(network().run(to_tensor(photo)))
    except ModelMissingError as error:
        pytest.skip(str(error))
    return np.asarray(cv2.resize(found, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


@needs_catalogue
@pytest.mark.parametrize("prior", [False, True], ids=["alone", "with prior"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "parts"])
def test_the_product_is_found_on_every_photo(whole: bool, prior: bool) -> None:
    """Among parts, a detail, shadow, backdrops, noise and a hole, the choice has an IoU of 0.95 or more, with and without a prior.

    The whole is one of the candidates, or has to be put together out of parts.
    """
    scores, leads = {}, []
    for seed, stem in enumerate(STEMS):  # the seed also varies the parts, and whether product and shadow come as one
        found = from_catalogue(stem, seed, whole=whole, shadowed=seed % 2 == 1)
        masks, *numbers = found.arrays()
        choice = choose(masks, *numbers, saliency(stem) if prior else None)
        scores[stem] = overlap(masks[list(choice.members)].any(axis=0), true_mask(stem)), found.kinds(choice.members)
        leads.append(choice.lead)
    assert min(score for score, _ in scores.values()) >= 0.95, sorted(scores.items(), key=lambda row: row[1][0])[:3]
    assert np.median(leads) > 0.15, "three times what is doubted"


def shapes(**kinds: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Make equally good candidates."""
    good = np.full(len(kinds), 0.97, np.float32)
    return list(kinds), np.array(list(kinds.values())), good, good


def names(kinds: list[str], choice: Choice) -> set[str]:
    return {kinds[index] for index in choice.members}


MUG = ellipse(140, 130, 50, 60) | ((ellipse(85, 130, 34, 34)) & ~ellipse(85, 130, 20, 20))
HOLE = ellipse(85, 130, 20, 20) & ~ellipse(140, 130, 50, 60)


def test_a_mugs_handle_stays_open() -> None:
    """The background that shows through the handle is not added, whether a prior or a backdrop mask says so."""
    prior = cv2.GaussianBlur(MUG.astype(np.float32), (0, 0), 3)
    for given in (None, prior):
        kinds, *numbers = shapes(mug=MUG, hole=HOLE, backdrop=~MUG)
        assert names(kinds, choose(*numbers, given)) == {"mug"}
    kinds, *numbers = shapes(
        body=ellipse(140, 130, 50, 60), handle=MUG & ~ellipse(140, 130, 50, 60), hole=HOLE, backdrop=~MUG
    )
    for given in (None, prior):
        assert names(kinds, choose(*numbers, given)) == {"body", "handle"}


def test_equal_products_are_kept_together() -> None:
    """Two of three shoes are not left behind, while a pebble beside them is."""
    shoes = {f"shoe{place}": ellipse(60 + 68 * place, 130, 28, 50) for place in range(3)}
    pebble = ellipse(30, 225, 9, 6)
    everything = np.any(list(shoes.values()), axis=0)
    kinds, *numbers = shapes(**shoes, pebble=pebble, backdrop=~everything)
    assert names(kinds, choose(*numbers)) == set(shoes)


@pytest.mark.parametrize("prior", [None, np.ones((SIDE, SIDE), np.float32)], ids=["alone", "a prior of everything"])
def test_a_plain_backdrop_is_never_chosen(prior: np.ndarray | None) -> None:
    """A photo with nothing but backdrops has no product, even for a prior that takes everything for it."""
    rows = np.arange(SIDE)[:, None] + np.zeros((1, SIDE), int)
    _, *numbers = shapes(all=rows >= 0, wall=rows < 150, floor=rows >= 150)
    with pytest.raises(NoProductError, match="points or a box"):
        choose(*numbers, prior)


def test_no_masks_are_no_product() -> None:
    nothing = np.zeros(0, np.float32)
    with pytest.raises(NoProductError):
        choose(np.zeros((0, SIDE, SIDE), np.bool_), nothing, nothing)


def test_a_mask_too_small_for_the_grid_is_passed_over() -> None:
    """One that vanished when the masks were reduced counts for nothing, beside others and alone."""
    kinds, *numbers = shapes(mug=MUG, speck=np.zeros_like(MUG), backdrop=~MUG)
    assert names(kinds, choose(*numbers)) == {"mug"}
    _, *numbers = shapes(speck=np.zeros_like(MUG))
    with pytest.raises(NoProductError):
        choose(*numbers)


def test_an_even_contest_is_unsure() -> None:
    """Two things that nothing tells apart, not even a backdrop, leave no lead; one product alone leaves a large one."""
    kinds, *numbers = shapes(bottle=ellipse(69.5, 128, 30, 60), can=ellipse(185.5, 128, 30, 60))
    assert choose(*numbers).lead < 0.05
    assert not choose(*numbers).grounded
    bottle = ellipse(128, 128, 40, 60)
    kinds, *numbers = shapes(bottle=bottle, crumb=ellipse(30, 30, 6, 6), backdrop=~bottle)
    choice = choose(*numbers)
    assert choice.grounded
    assert names(kinds, choice) == {"bottle"}
    assert choice.lead > 0.3
    assert choice.runner_up < choice.score <= 1


def test_the_order_of_candidates_does_not_matter() -> None:
    """The same masks are chosen however they are listed."""
    rng = np.random.default_rng(5)
    found = Candidates(rng)
    for mask in (MUG, HOLE, ~MUG, ellipse(30, 30, 12, 9), ellipse(220, 220, 20, 14)):
        found.add("", mask, (0.9, 0.99))
    masks, *numbers = found.arrays()
    expected = masks[list(choose(masks, *numbers).members)].any(axis=0)
    for _ in range(5):
        order = rng.permutation(len(masks))
        choice = choose(masks[order], *(values[order] for values in numbers))
        np.testing.assert_array_equal(masks[order][list(choice.members)].any(axis=0), expected)


def test_doubtful_masks_are_better_than_none() -> None:
    """Where the recipe lets poor masks pass, the best of them is still an answer."""
    kinds, masks, scores, stabilities = shapes(mug=MUG, crumb=ellipse(30, 30, 6, 6))
    assert names(kinds, choose(masks, scores / 3, stabilities / 3)) == {"mug"}


@pytest.mark.parametrize(
    ("lefts", "scale", "background"), [((9, 50), 1, 0), ((10, 50), 1, 1), ((3, 50), 4, 1), ((2, 50), 4, 0)]
)
def test_the_seeds_rule(lefts: tuple[float, float], scale: float, background: int) -> None:
    """The first mask is the background if its box begins within ten pixels of the photo's left edge, else the second."""
    boxes = np.array([[left, 0, 100, 100] for left in lefts], np.float32)
    assert seed_background(boxes, scale) == background


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.full((1, 4), 50)])
def test_the_seeds_rule_needs_masks(boxes: np.ndarray) -> None:
    with pytest.raises(NoProductError, match="choice: product"):
        seed_background(boxes.astype(np.float32), 1)
