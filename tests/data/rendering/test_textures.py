from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.textures import TEXTURE_NAMES, cut_texture, noise_tile, texture_bank


def test_every_texture_uses_all_greys_and_cannot_be_changed():
    bank = texture_bank()
    assert set(bank) == set(TEXTURE_NAMES)
    for name, variants in bank.items():
        for texture in variants:
            assert (texture.shape, texture.dtype) == ((512, 512), np.uint8), name
            assert texture.min() == 0 and texture.max() == 255 and texture.std() > 10, name
            with pytest.raises(ValueError, match="read-only"):
                texture[0, 0] = 1


@pytest.mark.parametrize("size_wh", [(1, 1), (320, 7), (512, 512), (1500, 900)])
@pytest.mark.parametrize("zoom", [0.4, 1.0, 2.7])
def test_a_piece_has_the_size_asked_for(size_wh, zoom):
    assert cut_texture(Draws(2), "bricks", size_wh, zoom).shape == size_wh[::-1]


def test_noise_is_centred_and_bell_shaped():
    tile = noise_tile().astype(float)
    assert tile.mean() == pytest.approx(128, abs=0.6)
    assert tile.std() == pytest.approx(32, abs=0.5)
    assert (abs(tile - 128) < 32).mean() == pytest.approx(0.68, abs=0.03)
