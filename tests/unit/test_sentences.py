from __future__ import annotations

import numpy as np
import pytest

from workers.captioning.colors import color_name, dominant_color
from workers.captioning.gates import caption_reasons
from workers.captioning.sentences import COLORS, article, caption, russian_color
from workers.captioning.vocabulary import Label, families, labels


def _label(en: str) -> Label:
    return next(label for label in (*labels(), *families().values()) if label.en == en)


@pytest.mark.parametrize(
    ("en", "color", "english", "russian"),
    [
        ("soccer ball", "red", "A red soccer ball.", "Красный футбольный мяч."),
        ("cowboy hat", "beige", "A beige cowboy hat.", "Бежевая ковбойская шляпа."),
        ("cowboy hat", "blue", "A blue cowboy hat.", "Синяя ковбойская шляпа."),
        ("necklace", "navy", "A navy necklace.", "Тёмно-синее ожерелье."),
        ("jeans", "light blue", "Light blue jeans.", "Голубые джинсы."),
        ("teapot", "orange", "An orange teapot.", "Оранжевый заварочный чайник."),
        ("binoculars", "olive", "Olive binoculars.", "Оливковый бинокль."),
        ("rocking chair", "brown", "A brown rocking chair.", "Коричневое кресло-качалка."),
        ("velvet", "burgundy", "Burgundy velvet.", "Бордовый бархат."),
        ("footwear", "blue", "Blue footwear.", "Синяя обувь."),
        ("umbrella", None, "An umbrella.", "Зонт."),
        ("unicycle", None, "A unicycle.", "Одноколёсный велосипед."),
        ("hourglass", None, "An hourglass.", "Песочные часы."),
        ("iPod", "white", "A white iPod.", "Белый айпод."),
    ],
)
def test_a_label_and_a_colour_read_as_a_sentence(en: str, color: str | None, english: str, russian: str) -> None:
    """Article by sound, colour agreeing in gender and number, capital and full stop."""
    assert caption(_label(en), color, "en") == english
    assert caption(_label(en), color, "ru") == russian


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("European robin", "a"),
        ("uniform", "a"),
        ("unusual cup", "an"),
        ("one-piece swimsuit", "a"),
        ("hour", "an"),
        ("honeycomb", "a"),
        ("iPod", "an"),
        ("X-ray", "an"),
        ("CD player", "a"),
        ("T-shirt", "a"),
        ("Airedale terrier", "an"),
        ("umbrella", "an"),
        ("yurt", "a"),
    ],
)
def test_the_article_follows_the_sound(words: str, expected: str) -> None:
    """Spelling misleads in both directions."""
    assert article(words) == expected


def test_a_label_with_a_colour_of_its_own_takes_no_second_one() -> None:
    """Nobody writes of a blue fire salamander."""
    assert caption(_label("fire salamander"), "blue", "en") == "A fire salamander."
    assert caption(_label("fire salamander"), "blue", "ru") == "Огненная саламандра."


def test_an_unknown_product_is_told_by_its_colour_alone() -> None:
    """What is not sure is not said."""
    assert caption(None, "red", "en") == "A red product."
    assert caption(None, "orange", "en") == "An orange product."
    assert caption(None, "red", "ru") == "Товар красного цвета."
    assert caption(None, "blue", "ru") == "Товар синего цвета."
    assert caption(None, "multicoloured", "ru") == "Разноцветный товар."
    assert caption(None, None, "en") == "A product."
    assert caption(None, None, "ru") == "Товар."


def test_every_name_and_colour_makes_a_clean_sentence() -> None:
    """All labels and families with all colours: one capital first, one full stop last, no doubled space, no stray script."""
    for label in (*labels(), *families().values()):
        for color in (None, *COLORS):
            english, russian = caption(label, color, "en"), caption(label, color, "ru")
            for text in (english, russian):
                assert text[0].isupper()
                assert text.endswith(".")
                assert text.count(".") == 1
                assert "  " not in text
            assert not any("а" <= char.lower() <= "я" for char in english)
            assert any("а" <= char.lower() <= "я" for char in russian)


def test_russian_names_agree_with_their_stated_gender() -> None:
    """A name that begins with an adjective shows its gender by the ending."""
    endings = {"ый": "m", "ий": "m", "ой": "m", "ая": "f", "яя": "f", "ое": "n", "ее": "n", "ые": "p", "ие": "p"}
    for label in (*labels(), *families().values()):
        first, *rest = label.ru.split()
        if rest and first[-2:] in endings:
            assert endings[first[-2:]] == label.ru_gender, label


def test_only_the_classes_that_imagenet_has_twice_share_a_name() -> None:
    """Two different things never read alike."""
    russian = [label.ru for label in labels()]
    assert {name for name in russian if russian.count(name) > 1} == {"ванна", "ноутбук", "солнцезащитные очки"}


def test_every_family_is_in_use_and_known() -> None:
    """The two tables name the same families."""
    assert {label.family for label in labels()} - {""} == set(families())


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("#000000", "black"),
        ("#ffffff", "white"),
        ("#dbd9dc", "white"),
        ("#808080", "grey"),
        ("#f5f5dc", "beige"),
        ("#d2b48c", "beige"),
        ("#8b4513", "brown"),
        ("#5d4037", "brown"),
        ("#ff0000", "red"),
        ("#b22222", "red"),
        ("#dc143c", "red"),
        ("#800020", "burgundy"),
        ("#ff8c00", "orange"),
        ("#ffa500", "orange"),
        ("#ffd700", "yellow"),
        ("#ffff00", "yellow"),
        ("#808000", "olive"),
        ("#008000", "green"),
        ("#2e8b57", "green"),
        ("#00ff00", "green"),
        ("#008080", "teal"),
        ("#40e0d0", "turquoise"),
        ("#87ceeb", "light blue"),
        ("#add8e6", "light blue"),
        ("#0000ff", "blue"),
        ("#1e90ff", "blue"),
        ("#4169e1", "blue"),
        ("#000080", "navy"),
        ("#1b1f3b", "navy"),
        ("#800080", "purple"),
        ("#8a2be2", "purple"),
        ("#c8a2c8", "purple"),
        ("#ffc0cb", "pink"),
        ("#ff69b4", "pink"),
        ("#ff00ff", "pink"),
    ],
)
def test_a_plain_thing_is_named_by_its_colour(code: str, name: str) -> None:
    """Well-known web colours get the name that people use."""
    rgb = np.full((32, 32, 3), [int(code[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    color = dominant_color(rgb, np.full((32, 32), 255, np.uint8))
    assert color is not None
    assert (color.name, color.share) == (name, 1.0)


def test_shading_does_not_change_the_colour() -> None:
    """A red thing lit from one side is red, though a third of it is dark."""
    light = np.linspace(0.35, 1.0, 120)[None, :, None]
    rgb = (np.array([210, 25, 30]) * light * np.ones((80, 1, 1))).astype(np.uint8)
    color = dominant_color(rgb, np.full((80, 120), 255, np.uint8))
    assert color is not None
    assert color.name == "red"
    assert color.share > 0.9


def test_what_is_behind_the_product_is_not_its_colour() -> None:
    """Only pixels that the mask holds for the product count."""
    rgb = np.full((64, 64, 3), (0, 160, 0), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    rgb[20:40, 20:40], mask[20:40, 20:40] = (20, 40, 230), 255
    color = dominant_color(rgb, mask)
    assert color is not None
    assert color.name == "blue"
    assert dominant_color(rgb, np.zeros_like(mask)) is None


def test_a_hair_thin_thing_still_has_a_colour() -> None:
    """A line one pixel wide in a large frame is found."""
    rgb = np.full((1500, 1500, 3), (200, 0, 0), np.uint8)
    mask = np.zeros((1500, 1500), np.uint8)
    mask[7] = 255
    color = dominant_color(rgb, mask)
    assert color is not None
    assert color.name == "red"


def test_many_colours_are_multicoloured() -> None:
    """No colour that covers less than half of a thing names it."""
    rgb = np.zeros((90, 90, 3), np.uint8)
    rgb[:30], rgb[30:60], rgb[60:] = (230, 20, 20), (20, 160, 40), (30, 60, 230)
    color = dominant_color(rgb, np.full((90, 90), 255, np.uint8))
    assert color is not None
    assert color.name == "multicoloured"
    assert color.share < 0.5


def test_black_and_white_stripes_are_not_grey() -> None:
    """The mean of two colours is neither of them."""
    rgb = np.zeros((90, 90, 3), np.uint8)
    rgb[::2] = 255
    color = dominant_color(rgb, np.full((90, 90), 255, np.uint8))
    assert color is not None
    assert color.name in {"black", "white", "multicoloured"}


def test_every_colour_has_a_name_in_both_languages() -> None:
    """Whatever the namer can say, the sentence can too."""
    grid = np.linspace(-128, 127, 35)
    names = {color_name(float(light), a, b) for light in np.linspace(0, 100, 21) for a in grid for b in grid}
    assert names == set(COLORS) - {"multicoloured"}
    assert russian_color("multicoloured") == "разноцветный"


def test_doubt_and_emptiness_call_for_a_person() -> None:
    """The gates name what is wrong."""
    assert caption_reasons({"en": "A cup.", "ru": "Чашка."}, certain=True) == ()
    assert caption_reasons({"en": "A product."}, certain=False) == ("caption_uncertain",)
    assert caption_reasons({"en": " .", "ru": "Чашка."}, certain=True) == ("caption_empty",)
