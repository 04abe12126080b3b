from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.bench.latency_result import LatencyResult
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples
from qtoolkit.data.sources import open_data_source
from qtoolkit.graph.layers import Layer
from qtoolkit.quantization.assess import accuracy_figures, latency_figures, variant_row

FP32, FP16, INT16, INT16W16, INT8 = (Precision(p) for p in ("fp32", "fp16", "int16", "int16w16", "int8"))


def layer(name: str, macs: int) -> Layer:
    shape = (1, 1, 1, 1)
    return Layer(name, "Conv", "x", "y", "w", None, shape, shape, shape, 1, macs, 0)


LAYERS = (layer("a", 1_000_000), layer("b", 3_000_000), layer("c", 4_000_000))


class TestVariantRow:
    @pytest.fixture
    def file(self, tmp_path) -> Path:
        (tmp_path / "model.mixed.onnx").write_bytes(b"x" * 2500)
        return tmp_path / "model.mixed.onnx"

    @staticmethod
    def row(file: Path, *precisions: Precision, layers: tuple[Layer, ...] = LAYERS):
        plan = PrecisionPlan(layers={each.name: p for each, p in zip(layers, precisions, strict=True)})
        return variant_row("mixed", file, plan, layers, 0.0081, {"accuracy_on": "ort-cpu", "ap": 50.0}, None)

    def test_activations_of_a_layer_that_reads_float_count_as_float(self, file):
        plan = PrecisionPlan(layers={each.name: INT8 for each in LAYERS})
        row = variant_row("int8", file, plan, LAYERS, 0.0081, {"accuracy_on": "ort-cpu"}, None, {"b"})
        assert row.bops_g == pytest.approx((5 * 8 * 8 + 3 * 8 * 32) / 1e3)
        assert (row.precisions, row.weights_bits, row.activation_bits) == ({"int8": 3}, 8, 8)

    @pytest.mark.parametrize(
        ("precisions", "counted", "bits", "wide", "share", "bops_g"),
        [
            # 10⁹ bit operations: MACs in 10⁶ × weight bits × activation bits / 10³.
            pytest.param((FP32,) * 3, {"fp32": 3}, (32, 32), 0, 0.0, 8 * 32 * 32 / 1e3, id="float"),
            pytest.param((FP16,) * 3, {"fp16": 3}, (16, 16), 3, 1.0, 8 * 16 * 16 / 1e3, id="16bit"),
            pytest.param((INT8,) * 3, {"int8": 3}, (8, 8), 0, 0.0, 8 * 8 * 8 / 1e3, id="int8"),
            pytest.param((INT16,) * 3, {"int16": 3}, (8, 16), 3, 1.0, 8 * 8 * 16 / 1e3, id="A16W8"),
            pytest.param(
                (FP16, INT8, INT8), {"fp16": 1, "int8": 2}, (8, 8), 1, 0.125, (256 + 7 * 64) / 1e3, id="mixed"
            ),
            pytest.param(
                (FP32, INT16, INT16W16),
                {"fp32": 1, "int16": 1, "int16w16": 1},
                (8, 16),
                2,
                0.875,
                (1024 + 3 * 128 + 4 * 256) / 1e3,
                id="a layer in float",
            ),
        ],
    )
    def test_precisions_shares_and_bit_operations_by_hand(self, file, precisions, counted, bits, wide, share, bops_g):
        row = self.row(file, *precisions)
        assert row.precisions == counted
        assert (row.weights_bits, row.activation_bits) == bits
        assert (row.layers_16bit, row.layers_total) == (wide, 3)
        assert row.macs_16bit_share == share
        assert row.bops_g == pytest.approx(bops_g, rel=1e-12)

    def test_the_file_itself(self, file):
        row = self.row(file, INT8, INT8, INT8)
        assert (row.variant, row.file, row.size_mb, row.gmacs) == ("mixed", "model.mixed.onnx", 0.0025, 0.0081)
        assert row.sha256 == hashlib.sha256(b"x" * 2500).hexdigest()
        assert (row.accuracy_on, row.ap, row.ar, row.latency) == ("ort-cpu", 50.0, None, None)

    def test_a_network_without_multiplications_has_a_share_of_0(self, file):
        assert self.row(file, FP16, layers=(layer("a", 0),)).macs_16bit_share == 0.0


def pose(shift: float = 0.0, score: float = 0.9, confidence: float = 0.9) -> People:
    """The person that the labels of the tiny data set show, moved right by ``shift`` pixels."""
    keypoints = [(12 + 2 * k + shift, 14 + k, confidence) for k in range(17)]
    return People(np.array([[10, 10, 50, 50]]), np.array([score]), np.array([keypoints]))


class TestAccuracyFigures:
    @pytest.fixture
    def samples(self, make_data_set, tmp_path) -> Samples:
        """Photos 1 to 4 of 80×60 pixels with one labelled person each."""
        return open_data_source(make_data_set(tmp_path / "people")).evaluation_samples()

    @staticmethod
    def everywhere(people: People, *image_ids: int) -> dict[int, People]:
        return dict.fromkeys(image_ids or (1, 2, 3, 4), people)

    def test_a_perfect_network(self, samples):
        people = self.everywhere(pose())
        figures = accuracy_figures(people, people, samples, "ort-cpu")
        assert figures == {
            "accuracy_on": "ort-cpu",
            **dict.fromkeys(("ap", "ap50", "ap75", "ap_m", "ar"), 100.0),
            # Areas of 1200 pixels are medium: there is no large person.
            "ap_l": None,
            "retention": 1.0,
            "agreement": 100.0,
        }

    def test_retention_is_ap_over_the_ap_of_float(self, samples):
        reference = self.everywhere(pose())
        half = self.everywhere(pose(), 1, 2) | self.everywhere(People.empty(17), 3, 4)
        figures = accuracy_figures(half, reference, samples, "ort-cpu")
        # Recall ends at 0.5: 51 of the 101 recall places have a precision of 1.
        assert figures["ap"] == pytest.approx(100 * 51 / 101, abs=5e-4)
        assert figures["retention"] == pytest.approx(51 / 101, abs=5e-6)
        assert figures["agreement"] == pytest.approx(100 * 51 / 101, abs=5e-4)

    def test_retention_may_be_above_1_where_agreement_is_not(self, samples):
        reference = self.everywhere(pose(), 1, 2) | self.everywhere(People.empty(17), 3, 4)
        surer = self.everywhere(pose(), 1, 2) | self.everywhere(pose(score=0.95), 3, 4)
        figures = accuracy_figures(surer, reference, samples, "ort-cpu")
        assert figures["retention"] == pytest.approx(101 / 51, abs=5e-6)
        # To the float network two false alarms come first: a precision of 2 / 4 at every recall.
        assert figures["agreement"] == pytest.approx(50.0, abs=5e-4)

    def test_a_float_network_that_finds_nobody_leaves_nothing_to_retain(self, samples):
        nobody = self.everywhere(People.empty(17))
        figures = accuracy_figures(self.everywhere(pose()), nobody, samples, "ort-cpu")
        assert figures["ap"] == 100.0
        assert figures["retention"] is None
        assert figures["agreement"] is None

    def test_unsure_people_are_no_ground_truth_for_agreement(self, samples):
        unsure = self.everywhere(pose(score=0.4))
        figures = accuracy_figures(unsure, unsure, samples, "ort-cpu")
        assert figures["ap"] == 100.0
        assert figures["agreement"] is None

    def test_without_labels_there_is_agreement_alone(self, samples):
        people = self.everywhere(pose())
        figures = accuracy_figures(people, people, replace(samples, annotations=None), "ort-cpu")
        assert figures == {"accuracy_on": "ort-cpu", "agreement": 100.0}

    @pytest.mark.parametrize("left_out_of", ["candidate", "reference"])
    def test_only_photos_that_both_networks_saw_count(self, samples, left_out_of):
        some, every = self.everywhere(pose(), 2, 4), self.everywhere(pose())
        pair = (some, every) if left_out_of == "candidate" else (every, some)
        figures = accuracy_figures(*pair, samples, "ort-cpu")
        assert (figures["ap"], figures["retention"], figures["agreement"]) == (100.0, 1.0, 100.0)

    def test_where_it_ran_is_said(self, samples):
        people = self.everywhere(pose())
        runtime = "ort-cpu (simulating the target)"
        assert accuracy_figures(people, people, samples, runtime)["accuracy_on"] == runtime


class TestLatencyFigures:
    @pytest.fixture
    def result(self) -> LatencyResult:
        return LatencyResult(
            variant="int8", target="ort-cpu", device="a processor", runtime="onnxruntime", version="1.20.0",
            provider="CPUExecutionProvider", threads=2, batch=1, input_size_wh=(64, 48),
            input_shapes={"images": (1, 3, 48, 64)}, inputs="file", options={"spinning": True}, model_sha256="ab",
            warm_up_s=1.0, warm_up_count=12, warm_up_stable=True, count=20, block=2, p50_ms=5.123456, p90_ms=6.0,
            p99_ms=7.00004, mean_ms=8.0, min_ms=4.0, ratio=0.512345, ratio_lo=0.5, ratio_hi=0.6, idle_cpu_pct=0.5,
            block_medians_ms=(5.0,), samples_ms=(5.0, 6.0),
        )  # fmt: skip

    def test_figures(self, result):
        figures = latency_figures(result)
        assert (figures.p50_ms, figures.p90_ms, figures.p99_ms) == (5.1235, 6.0, 7.0)
        assert (figures.ratio, figures.ratio_lo, figures.ratio_hi) == (0.5123, 0.5, 0.6)
        # One after the other: 1000 / mean of 8 ms.
        assert figures.images_per_second == 125.0
        assert figures.measured is True
        assert figures.error_band_pct is None
        named = (figures.target, figures.device, figures.runtime, figures.version)
        assert named == ("ort-cpu", "a processor", "onnxruntime", "1.20.0")

    def test_all_other_conditions_are_kept_and_no_sample(self, result):
        assert latency_figures(result).conditions == {
            "provider": "CPUExecutionProvider", "threads": 2, "batch": 1, "input_size_wh": [64, 48],
            "input_shapes": {"images": [1, 3, 48, 64]}, "inputs": "file", "options": {"spinning": True},
            "warm_up_s": 1.0, "warm_up_count": 12, "warm_up_stable": True, "count": 20, "block": 2,
            "idle_cpu_pct": 0.5,
        }  # fmt: skip
