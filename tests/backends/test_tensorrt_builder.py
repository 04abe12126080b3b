"""Building engines, on a stand-in with the names of five versions of TensorRT."""

from __future__ import annotations

import sys

import pytest
from onnx import TensorProto, helper

from qtoolkit.backends.tensorrt_builder import BuildSettings, ShapeRange, build_engine
from qtoolkit.backends.tensorrt_progress import heard_of_layers
from qtoolkit.errors import ModelFileError, UnavailableError, UsageError

WEAK = BuildSettings(strongly_typed=False, fp16=True, int8=True)
STRONG = BuildSettings(strongly_typed=True)


def network(op_type="Relu", size=4):
    nodes = [helper.make_node(op_type, ["x"], ["a"], "first"), helper.make_node("Relu", ["a"], ["y"], "last")]
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])] for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "test", *values))


def build(settings, *progress, model=None):
    return build_engine(sys.modules["tensorrt"], model or network(), settings, "net.onnx", *progress)


def test_each_version_builds_its_dialects(version, install_tensorrt):
    log = install_tensorrt(version)
    weak, strong = version != "11.4", version not in ("8.5", "8.6")
    flags = sys.modules["tensorrt"].NetworkDefinitionCreationFlag
    explicit = 1 << flags.EXPLICIT_BATCH if hasattr(flags, "EXPLICIT_BATCH") else 0
    if weak:
        assert build(WEAK).layers == 2
        assert log["flags"] == {"FP16", "INT8"} and log["network_flags"] == explicit
    else:
        with pytest.raises(UnavailableError, match="does not know weakly typed"):
            build(WEAK)
    log.pop("flags", None)
    if strong:
        assert build(STRONG).plan
        assert "flags" not in log and log["network_flags"] == explicit | 1 << flags.STRONGLY_TYPED
    else:
        with pytest.raises(UnavailableError, match="does not know strongly typed") as caught:
            build(STRONG)
        assert "--target tensorrt" in caught.value.do


def test_limits_and_verbosity_are_set(version, install_tensorrt):
    log = install_tensorrt(version)
    strong = version == "11.4"
    build(BuildSettings(strongly_typed=strong, workspace_mb=256, tf32=False))
    assert log["WORKSPACE"] == 256 << 20 and log["verbosity"] == "DETAILED" and log["cleared"] == {"TF32"}


def test_layers_are_counted_where_there_is_no_monitor(install_tensorrt):
    install_tensorrt("8.5")
    seen = []
    built = build(BuildSettings(strongly_typed=False), lambda *said: seen.append(said))
    assert seen[0][0] == "timing kernels of layers" and seen[-1][1:] == (built.layers, built.layers)
    assert all(message.severity != "VERBOSE" for message in built.messages)


def test_what_is_heard_of_layers():
    seen = []
    hear = heard_of_layers(lambda *said: seen.append(said[1:]), 3)
    hear("*************** Autotuning format combination: Half(1,2) -> Half(1,2) ***************")
    hear("--------------- Timing Runner: a + PWN(PWN(b), c) (CaskConvolution)")
    hear("--------------- Timing Runner: a + PWN(PWN(b), c) (CaskFlattenConvolution[0x80000009])")
    hear("--------------- Timing Runner: d || e (CaskConvolution)")
    assert seen == [(2, 3), (3, 3)]


def test_the_level_of_optimization(version, install_tensorrt):
    log = install_tensorrt(version)
    settings = BuildSettings(strongly_typed=version == "11.4", optimization_level=1)
    if version == "8.5":
        with pytest.raises(UsageError, match="no levels of optimization"):
            build(settings)
    else:
        build(settings)
        assert log["level"] == 1


@pytest.mark.parametrize("version", ["8.5", "10.16"])
def test_named_nodes_stay_in_float32(version, install_tensorrt):
    log = install_tensorrt(version)
    build(BuildSettings(strongly_typed=False, fp16=True, float32_nodes=frozenset({"last"})))
    assert log["float32"] == ["last"] and log["flags"] == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}


def test_the_timing_cache_is_kept(version, install_tensorrt, tmp_path):
    log = install_tensorrt(version)
    path = tmp_path / "timing.cache"
    settings = BuildSettings(strongly_typed=version == "11.4", timing_cache=path)
    build(settings)
    first = path.read_bytes()
    build(settings)
    assert log["caches"] == [b"", first] and first.startswith(b"cache of")


def test_a_timing_cache_of_another_version_is_replaced(install_tensorrt, tmp_path):
    log = install_tensorrt("10.3")
    path = tmp_path / "timing.cache"
    path.write_bytes(b"of another version")
    build(BuildSettings(strongly_typed=True, timing_cache=path))
    assert log["caches"] == [b"of another version", b""] and path.read_bytes() == b"cache of 10.3.0"
    assert [each.name for each in tmp_path.iterdir()] == ["timing.cache"]


def test_free_dimensions_need_a_range(version, install_tensorrt):
    log = install_tensorrt(version)
    strong = version == "11.4"
    with pytest.raises(UsageError, match="'x' has free dimensions"):
        build(BuildSettings(strongly_typed=strong), model=network(size="n"))
    shapes = {"x": ShapeRange((1, 1), (1, 4), (1, 8))}
    build(BuildSettings(strongly_typed=strong, shapes=shapes), model=network(size="n"))
    assert log["shapes"] == {"x": ((1, 1), (1, 4), (1, 8))}


def test_the_parsers_error_names_the_node(version, install_tensorrt):
    install_tensorrt(version)
    with pytest.raises(ModelFileError, match=r"refuses net.onnx at node 'first' \(Refused\)") as caught:
        build(BuildSettings(strongly_typed=version == "11.4"), model=network("Refused"))
    assert caught.value.found == "No importer registered"


def test_the_builders_last_words_are_told(install_tensorrt):
    log = install_tensorrt("10.3")
    log.update(fails=True, say="no tactic for\n  first")
    with pytest.raises(ModelFileError, match=r"TensorRT 10\.3\.0 cannot build net\.onnx") as caught:
        build(STRONG)
    assert caught.value.found == "no tactic for first"


def test_compute_capabilities_are_for_rtx(install_tensorrt):
    install_tensorrt("11.4")
    with pytest.raises(UsageError, match="for the GPU it is built on"):
        build(BuildSettings(strongly_typed=True, compute_capabilities=("8.6",)))


def test_a_builder_that_finds_no_gpu_says_so(install_tensorrt, monkeypatch):
    install_tensorrt("8.5")

    def fail(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", fail)
    with pytest.raises(UnavailableError, match=r"the builder of TensorRT 8\.5\.2\.2 does not start"):
        build(WEAK)
