from __future__ import annotations

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.outfit import HAIR_STYLES, Material, draw_outfit, scaled_colour


def test_outfits_have_a_colour_for_every_material():
    materials = [value for name, value in vars(Material).items() if not name.startswith("_")]
    assert sorted(materials) == list(range(16))
    for seed in range(100):
        outfit = draw_outfit(Draws(seed))
        assert len(outfit.colours) == 16
        assert all(0 <= value <= 255 for colour in outfit.colours for value in colour)


def test_a_print_can_be_told_from_its_shirt():
    for seed in range(100):
        shirt, mark = (draw_outfit(Draws(seed)).colours[each] for each in (Material.SHIRT, Material.SHIRT_MARK))
        assert sum(abs(a - b) for a, b in zip(shirt, mark, strict=True)) > 100


def test_all_hair_and_every_sleeve_is_worn_and_children_have_no_beard():
    outfits = [draw_outfit(Draws(seed), child=seed % 2 == 0) for seed in range(400)]
    assert {outfit.hair for outfit in outfits} == {style for style, _ in HAIR_STYLES}
    assert {0.0, 0.5, 2.0} <= {outfit.sleeve for outfit in outfits}
    assert any(outfit.skirt > 0 for outfit in outfits)
    assert not any(outfit.beard for outfit in outfits[::2])
    assert any(outfit.beard for outfit in outfits[1::2])


def test_scaled_colours_stay_in_range():
    assert scaled_colour((10, 200, 255), 2.0) == (20, 255, 255)
    assert scaled_colour((10, 200, 255), 0.5) == (5, 100, 128)
