"""Keypoint losses beside each other: OKS, L1, scaled L1; same budget, three seeds, rendered people.

usage: python benchmarks/ablation_loss.py [--images 12000] [--size 128] [--seeds 0 1 2] [--out runs/ablation_loss]

The paper (s6, 960 pixels, COCO): OKS 63.8, L1 58.9, scaled L1 59.7. Stopped, it goes on run by run.
"""

from __future__ import annotations

import os

# Before torch is imported; see qtoolkit/cli/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ablation import Row, parser_of, print_table, run_grid


def main() -> None:
    parser = parser_of(__doc__, "runs/ablation_loss", 128)
    parser.add_argument("--size", type=int, default=128, help="image size, pixels")
    options = parser.parse_args()
    rows = [Row(kind, {"loss": kind, "image_size": options.size}) for kind in ("oks", "l1", "l1-scaled")]
    print_table("keypoint loss", run_grid(options, rows), options)


if __name__ == "__main__":
    main()
