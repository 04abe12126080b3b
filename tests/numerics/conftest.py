from __future__ import annotations

from hypothesis import settings

# A busy machine is slower than any deadline; the suite judges results, not wall-clock.
settings.register_profile("numerics", deadline=None)
settings.load_profile("numerics")
