"""Input sizes beside each other: the same network, images seen and people; three seeds.

usage: python benchmarks/ablation_input_size.py [--sizes 128 192 320] [--images 12000] [--out runs/ablation_input_size]

The paper (s6, COCO): 640 pixels 57.5, 960 63.8, 1280 64.9: it saturates. Stopped, it goes on run by run.
"""

from __future__ import annotations

import os

# Before torch is imported; see qtoolkit/cli/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ablation import Row, parser_of, print_table, run_grid


def main() -> None:
    parser = parser_of(__doc__, "runs/ablation_input_size", 320)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 320], help="pixels, multiples of 64")
    options = parser.parse_args()
    rows = [Row(f"{size} px", {"image_size": size}) for size in options.sizes]
    print_table("input size", run_grid(options, rows), options)


if __name__ == "__main__":
    main()
