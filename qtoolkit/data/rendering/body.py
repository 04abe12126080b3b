"""How bodies are built: the lengths of their parts as shares of the stature, from toddler to adult."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qtoolkit.data.rendering.draws import Draws

__all__ = ["ADULT", "TODDLER", "BodyShape", "draw_shape"]

_CHILDREN = 0.17
_LENGTH_SPREAD = 0.03


@dataclass(frozen=True)
class BodyShape:
    """Lengths as shares of the stature 1.0, between joint centres unless said otherwise.

    ``torso`` reaches from between the hips to between the shoulders, ``neck`` from there to the chin; ``head_…`` are
    half-axes of the skull; ``hand`` reaches from the wrist to the finger tips; ``foot`` from heel to toe.
    ``girth`` multiplies the radius of everything, 1.0 for a slender adult; ``waist`` that of the waist alone.
    """

    ankle_height: float
    shank: float
    thigh: float
    torso: float
    neck: float
    head_half_height: float
    head_half_width: float
    head_half_depth: float
    shoulder_half: float
    hip_half: float
    upper_arm: float
    forearm: float
    hand: float
    foot: float
    girth: float
    waist: float

    @property
    def standing_height(self) -> float:
        """From the sole to the top of the head, upright: about 1.0 whatever was drawn."""
        legs = self.ankle_height + self.shank + self.thigh
        return legs + self.torso + self.neck + 2 * self.head_half_height


# Adult: Drillis and Contini, "Body Segment Parameters" (1966), as in Winter, "Biomechanics and Motor Control of Human
# Movement", figure 4.1. Shoulders and hips are joint centres there, half the distance between them here.
ADULT = BodyShape(
    ankle_height=0.039,
    shank=0.246,
    thigh=0.245,
    torso=0.288,
    neck=0.052,
    head_half_height=0.065,
    head_half_width=0.046,
    head_half_depth=0.056,
    shoulder_half=0.108,
    hip_half=0.062,
    upper_arm=0.180,
    forearm=0.146,
    hand=0.102,
    foot=0.152,
    girth=1.0,
    waist=1.0,
)
TODDLER = BodyShape(
    ankle_height=0.045,
    shank=0.190,
    thigh=0.200,
    torso=0.310,
    neck=0.035,
    head_half_height=0.110,
    head_half_width=0.083,
    head_half_depth=0.095,
    shoulder_half=0.112,
    hip_half=0.066,
    upper_arm=0.158,
    forearm=0.125,
    hand=0.098,
    foot=0.150,
    girth=1.2,
    waist=1.25,
)


def draw_shape(draws: Draws) -> BodyShape:
    """A body: mostly adults, some children of any age; lengths vary by some per cent, girth from slim to stout."""
    maturity = draws.between(0.0, 0.9) if draws.chance(_CHILDREN) else 1.0
    lengths = {
        field.name: (
            getattr(TODDLER, field.name) + maturity * (getattr(ADULT, field.name) - getattr(TODDLER, field.name))
        )
        * draws.around(1.0, _LENGTH_SPREAD)
        for field in fields(BodyShape)
    }
    # The two are tied: who is stout is so at the waist most of all.
    stoutness = draws.unit() ** 2
    lengths["girth"] *= 0.92 + 0.30 * stoutness
    lengths["waist"] *= draws.between(0.86, 1.04) + 0.30 * stoutness
    lengths["shoulder_half"] *= draws.between(0.93, 1.08)
    lengths["hip_half"] *= draws.between(0.92, 1.12)
    return BodyShape(**lengths)
