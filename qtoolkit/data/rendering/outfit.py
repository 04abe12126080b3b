"""What people look like: skin, hair, clothes and their colours, as materials of a palette."""

from __future__ import annotations

from dataclasses import dataclass

from qtoolkit.data.rendering.draws import Draws

__all__ = ["HAIR_STYLES", "Colour", "Material", "Outfit", "draw_colour", "draw_outfit", "scaled_colour"]

Colour = tuple[int, int, int]
"""Blue, green, red, 0–255."""


class Material:
    """What a pixel of a person is made of: an index into ``Outfit.colours``."""

    SKIN = 0
    SKIN_SHADE = 1
    SHIRT = 2
    SHIRT_MARK = 3
    TROUSERS = 4
    TROUSERS_MARK = 5
    SHOE = 6
    SOLE = 7
    HAIR = 8
    EYE = 9
    IRIS = 10
    LIP = 11
    BROW = 12
    HAT = 13
    SOCK = 14
    GEAR = 15


HAIR_STYLES = (("short", 5.0), ("long", 3.0), ("tail", 1.2), ("bald", 0.8), ("cap", 1.3), ("bun", 0.7))
"""Style and weight; a cap hides the hair and has a peak."""

# Light to dark, measured by eye on photographs under neutral light.
_SKIN: tuple[Colour, ...] = (
    (187, 206, 240),
    (168, 190, 231),
    (142, 172, 222),
    (118, 150, 205),
    (92, 126, 184),
    (68, 100, 156),
    (52, 78, 125),
    (40, 60, 98),
    (32, 45, 72),
)
_HAIR: tuple[Colour, ...] = (
    (22, 24, 28),
    (30, 34, 44),
    (34, 50, 74),
    (48, 72, 108),
    (70, 110, 150),
    (110, 160, 196),
    (40, 62, 140),
    (140, 142, 144),
    (205, 206, 208),
)
_CLOTH: tuple[tuple[Colour, float], ...] = (
    ((235, 235, 236), 3.0),
    ((32, 32, 34), 3.0),
    ((120, 122, 124), 2.0),
    ((92, 58, 34), 2.5),
    ((150, 100, 50), 1.5),
    ((40, 40, 170), 1.6),
    ((60, 110, 50), 1.2),
    ((60, 180, 220), 1.0),
    ((170, 130, 190), 0.8),
    ((120, 170, 205), 1.4),
    ((50, 80, 125), 1.2),
    ((60, 60, 90), 1.0),
    ((40, 125, 230), 0.8),
    ((200, 180, 130), 0.9),
)


@dataclass(frozen=True)
class Outfit:
    """Clothes, hair and skin of one person.

    colours         16 colours by ``Material``
    sleeve, leg     how far cloth covers a limb of two halves: 0 nothing, 1 to the elbow or knee, 2 to the hand or foot
    skirt           how far a skirt reaches down the leg in the same units; 0: trousers
    looseness       cloth radius over body radius, 1.05 tight to 1.4 wide
    hem             how far the shirt hangs below the belt, in statures
    pattern         "plain", "stripes", "bars", "checks", "dots" or "print" on the shirt
    beard, glasses  worn or not
    """

    colours: tuple[Colour, ...]
    sleeve: float
    leg: float
    skirt: float
    looseness: float
    hem: float
    pattern: str
    hair: str
    beard: bool
    glasses: bool


def draw_outfit(draws: Draws, *, child: bool = False) -> Outfit:
    """Clothes for a warm or a cold day, hair of any style; a child has neither beard nor high heels."""
    skin = _varied(draws, draws.pick(_SKIN), 10)
    hair = _varied(draws, draws.pick(_HAIR), 10)
    warm = draws.chance(0.6)
    style = draws.weighted(HAIR_STYLES)
    skirt = draws.pick((0.55, 0.85, 1.2)) if style in ("long", "tail", "bun") and draws.chance(0.35) else 0.0
    dress = skirt > 0 and draws.chance(0.5)
    shirt, trousers = draw_colour(draws), draw_colour(draws)
    if dress or draws.chance(0.05):
        trousers = shirt
    eyes = draws.pick(((40, 52, 70), (30, 36, 44), (130, 100, 70), (80, 100, 80)))
    colours = (
        skin,
        scaled_colour(skin, 0.80),
        shirt,
        _contrasting(draws, shirt),
        trousers,
        scaled_colour(trousers, 0.8),
        draw_colour(draws),
        draws.pick(((225, 226, 228), (40, 40, 42))),
        hair,
        (232, 234, 238),
        eyes,
        _mixed(skin, (70, 60, 150), 0.45),
        scaled_colour(hair, 0.8),
        draw_colour(draws),
        draws.pick((skin, (230, 230, 230), (50, 50, 52))),
        draw_colour(draws),
    )
    return Outfit(
        colours=colours,
        sleeve=draws.pick((0.0, 0.5, 0.5, 0.5, 1.0)) if warm else draws.pick((1.5, 2.0, 2.0)),
        leg=draws.pick((0.5, 0.5, 1.0, 2.0, 2.0)) if warm else 2.0,
        skirt=skirt,
        looseness=draws.between(1.04, 1.2) if warm else draws.between(1.1, 1.38),
        hem=draws.between(-0.005, 0.06),
        pattern=draws.weighted(
            (("plain", 5.0), ("stripes", 1.6), ("bars", 0.8), ("checks", 0.9), ("dots", 0.6), ("print", 1.6))
        ),
        hair=style,
        beard=style in ("short", "bald", "cap") and not child and draws.chance(0.25),
        glasses=draws.chance(0.15),
    )


def draw_colour(draws: Draws) -> Colour:
    """A colour of cloth, paint or plastic: mostly those people wear, sometimes any."""
    if draws.chance(0.2):
        return (draws.integer(20, 240), draws.integer(20, 240), draws.integer(20, 240))
    return _varied(draws, draws.weighted(_CLOTH), 18)


def scaled_colour(colour: Colour, factor: float) -> Colour:
    """The colour, lighter (factor > 1) or darker."""
    return (
        min(255, round(factor * colour[0])),
        min(255, round(factor * colour[1])),
        min(255, round(factor * colour[2])),
    )


def _varied(draws: Draws, colour: Colour, spread: int) -> Colour:
    light, half = draws.integer(-spread, spread), spread // 2
    return (
        min(250, max(8, colour[0] + light + draws.integer(-half, half))),
        min(250, max(8, colour[1] + light)),
        min(250, max(8, colour[2] + light + draws.integer(-half, half))),
    )


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    blue, green, red = (round((1 - share) * a + share * b) for a, b in zip(first, second, strict=True))
    return blue, green, red


def _contrasting(draws: Draws, colour: Colour) -> Colour:
    other = draw_colour(draws)
    if sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > 120:
        return other
    return (225, 226, 228) if sum(colour) < 380 else (45, 44, 46)
