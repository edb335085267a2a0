"""The spec reader of TAO's stages, which has no schema, against protobuf's own, which has."""

import pytest
from google.protobuf import text_format

from components import step
from components.decode.grid.clustering import Clustering
from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.experiment import to_clustering
from components.detectnet_v2.stage import PLACEHOLDERS, _clustering, render_spec
from components.tao.rendering import parse_spec, template_text

VALUES = dict.fromkeys(PLACEHOLDERS["experiment"], 2)


def read_with_schema(message):
    """What `parse_spec` makes of a message, as protobuf reads it: texts in place of names of enumerations."""
    found = {}
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            is_message = field.message_type.fields_by_name["value"].message_type is not None
            found[field.name] = [
                {"key": [key], "value": [read_with_schema(value[key]) if is_message else value[key]]} for key in value
            ]
            continue
        values = list(value) if field.is_repeated else [value]
        if field.message_type:
            values = [read_with_schema(each) for each in values]
        elif field.enum_type:
            values = [field.enum_type.values_by_number[each].name for each in values]
        found[field.name] = values
    return found


def assert_same(plain, read):
    if isinstance(read, dict):
        assert set(read) <= set(plain)  # protobuf lists no field that has its default
        for name, values in read.items():
            assert len(plain[name]) == len(values), name
            for one, other in zip(plain[name], values, strict=True):
                assert_same(one, other)
    elif isinstance(read, bool):
        assert plain == str(read).lower()
    elif isinstance(read, str):
        assert plain == read
    else:
        assert float(plain) == pytest.approx(read, rel=1e-6)


@pytest.mark.parametrize("folder", ["facedetect", "facedetect-cpu"])
def test_what_it_reads_is_what_protobuf_reads(folder):
    text = render_spec(template_text(f"{folder}/train"), VALUES)
    assert_same(parse_spec(text), read_with_schema(text_format.Parse(text, spec_pb2.Experiment())))


def test_comments_quotes_and_separators_are_those_of_protobuf_text():
    text = "a: 1, b: 'x#y'; # c { \nd { e: \"}\" } d {f: -2.5}"
    assert parse_spec(text) == {"a": ["1"], "b": ["x#y"], "d": [{"e": ["}"]}, {"f": ["-2.5"]}]}


@pytest.mark.parametrize("algorithm", ["DBSCAN", "NMS", "HYBRID"])
def test_clustering_is_what_the_open_engine_makes_of_it(algorithm):
    text = render_spec(template_text("facedetect/train"), VALUES).replace("DBSCAN", algorithm)
    message = text_format.Parse(text, spec_pb2.Experiment())
    config = message.postprocessing_config.target_class_config["face"].clustering_config
    classes = parse_spec(text)["postprocessing_config"][0]["target_class_config"]
    found, wanted = Clustering(**_clustering(classes)["face"]), to_clustering(config)
    # The schema's numbers have 32 bits; those that the spec leaves out are 0 there, unused by its algorithm.
    written = {name: pytest.approx(getattr(wanted, name), rel=1e-6) for name in ("dbscan_eps", "coverage_threshold")}
    assert found.algorithm == wanted.algorithm == algorithm.lower()
    assert all(getattr(found, name) == value for name, value in written.items())
    assert found.minimum_height == wanted.minimum_height


@pytest.mark.parametrize("text", ["a {", "a { b: 1 } }", "}", "a: 1 b", '{ a: "x" }'])
def test_spec_with_loose_braces_is_refused(text):
    with pytest.raises(step.UserError, match="braces do not match"):
        parse_spec(text)
