"""From `clustering_config` to the settings of the grid's post-processing."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from spec_texts import FACENET_TAO_4_0, INFERENCE

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.experiment import clustering, inference_clustering, to_clustering
from components.detectnet_v2.spec import load_experiment, load_inference


def config(text: str) -> spec_pb2.ClusteringConfig:
    return text_format.Parse(text, spec_pb2.ClusteringConfig())


def test_thresholds_stand_where_the_spec_has_them_and_change_places_under_tao5():
    written = config("dbscan_confidence_threshold: 0.75 nms_confidence_threshold: 0.25")
    ours, theirs = to_clustering(written), to_clustering(written, tao5=True)
    assert (ours.dbscan_confidence_threshold, ours.nms_confidence_threshold) == (0.75, 0.25)
    assert (theirs.dbscan_confidence_threshold, theirs.nms_confidence_threshold) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("written", "ours", "tao5"), [("", 1, 1), ("0", 0, 1), ("0.03", 0.03, 1), ("1", 1, 1), ("1.0", 1, 1)]
)
def test_min_samples_count_as_written_and_as_a_whole_number_under_tao5(written: str, ours: float, tao5: float):
    message = config(f"dbscan_min_samples: {written}" if written else "")
    assert to_clustering(message).dbscan_min_samples == pytest.approx(ours)
    assert to_clustering(message, tao5=True).dbscan_min_samples == tao5


def test_an_unset_nms_threshold_is_taos_default_and_zero_under_tao5():
    for written, ours, tao5 in (("", 0.3, 0), ("nms_iou_threshold: 0.25", 0.25, 0.25)):
        assert to_clustering(config(written)).nms_iou_threshold == pytest.approx(ours)
        assert to_clustering(config(written), tao5=True).nms_iou_threshold == tao5


def test_facenet_spec_loses_its_threshold_under_tao5(tmp_path: Path):
    file = tmp_path / "train.txt"
    file.write_text(FACENET_TAO_4_0)
    spec = load_experiment(file).message
    ours, theirs = clustering(spec)["face"], clustering(spec, tao5=True)["face"]
    assert (ours.dbscan_confidence_threshold, theirs.dbscan_confidence_threshold) == (pytest.approx(0.9), 0)
    assert (ours.dbscan_min_samples, theirs.dbscan_min_samples) == (pytest.approx(0.03), 1)
    assert (ours.algorithm, ours.minimum_height, ours.nms_iou_threshold) == ("dbscan", 4, pytest.approx(0.3))
    assert ours.coverage_threshold == pytest.approx(0.004)
    assert ours.dbscan_eps == pytest.approx(0.15)


def test_inference_has_its_confidence_model_and_its_thresholds_in_their_places(tmp_path: Path):
    file = tmp_path / "inference.txt"
    file.write_text(INFERENCE.replace("aggregate_cov", "mean_cov").replace("DBSCAN", "HYBRID"))
    handler = load_inference(file).message.bbox_handler_config.classwise_bbox_handler_config["face"]
    for tao5 in (False, True):
        made = inference_clustering(handler, tao5)
        assert (made.algorithm, made.confidence_model) == ("hybrid", "mean_cov")
        assert (made.dbscan_confidence_threshold, made.nms_confidence_threshold) == (0, pytest.approx(0.1))
        assert made.nms_iou_threshold == pytest.approx(0.3)


@pytest.mark.parametrize(("written", "ours", "tao5"), [("0.05", 0.05, 1), ("1.75", 1.75, 1), ("2", 2, 2)])
def test_inference_takes_whole_min_samples_under_tao5(written: str, ours: float, tao5: float, tmp_path: Path):
    file = tmp_path / "inference.txt"
    file.write_text(INFERENCE.replace("dbscan_min_samples: 1", f"dbscan_min_samples: {written}"))
    handler = load_inference(file).message.bbox_handler_config.classwise_bbox_handler_config["face"]
    assert inference_clustering(handler).dbscan_min_samples == pytest.approx(ours)
    assert inference_clustering(handler, tao5=True).dbscan_min_samples == tao5
