"""`${NAME}` in a spec: filled from the environment, and never able to change the structure around it."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from spec_texts import FACENET_TAO_4_0

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.prototext import fill_variables
from components.detectnet_v2.spec import load_experiment
from components.step import UserError

TEMPLATE = (
    FACENET_TAO_4_0.replace('"/data/training"', '"${DATA}/training"')
    .replace("num_epochs: 100", "num_epochs: ${EPOCHS}")
    .replace("L1 weight", "${KIND} weight")
)


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA", "EPOCHS", "KIND"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "train.txt"
    file.write_text("# ${COMMENTED} out\n" + TEMPLATE)
    return file


def test_variables_are_filled_from_the_environment_in_and_outside_quotes(template, monkeypatch):
    monkeypatch.setenv("DATA", "/data sets/wider #1")
    monkeypatch.setenv("EPOCHS", "7")
    monkeypatch.setenv("KIND", "L2")
    spec = load_experiment(template)
    assert spec.message.dataset_config.data_sources[0].image_directory_path == "/data sets/wider #1/training"
    assert spec.message.training_config.num_epochs == 7
    assert spec.message.training_config.regularizer.type == spec_pb2.RegularizerConfig.L2
    assert "num_epochs: 7\n" in spec.text
    assert "${COMMENTED}" in spec.text


def test_unfilled_variable_is_refused_with_its_line_and_the_way_to_set_it(template):
    line = TEMPLATE.splitlines().index(next(line for line in TEMPLATE.splitlines() if "${DATA}" in line)) + 2
    with pytest.raises(UserError) as caught:
        load_experiment(template)
    assert f":{line}: ${{DATA}} is not filled in" in str(caught.value)
    assert "DATA=value detectnet_v2" in str(caught.value)
    assert str(caught.value).endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('a: "${X}"', '" b: 1 c: "'),
        ('a: "${X}"', "it's"),
        ('a: "${X}"', "two\nlines"),
        ('a: "${X}"', "back\\"),
        ('a: "${X}"', "${Y}"),
        ("a: ${X}", "1 b: 2"),
        ("a: ${X}", "1 # b"),
        ("a: ${X}", "{ b: 1 }"),
        ("a: ${X}", '"text"'),
        ("a: ${X}", ""),
        ("${X}: 1", "a: 2 b"),
    ],
)
def test_value_that_could_break_out_is_refused_and_not_shown(text: str, value: str):
    filled, (problem,) = fill_variables(f"# one\n{text}", {"X": value, "Y": "y"})
    assert filled == f"# one\n{text}"
    assert problem.line == 2
    assert problem.message.startswith("${X}: ")
    assert not value or value not in problem.message


@pytest.mark.parametrize("name", ["", "a b", "1st", "a-b"])
def test_what_is_no_name_is_refused(name: str):
    _, (problem,) = fill_variables(f'a: "${{{name}}}"', {name: "value"})
    assert "a variable's name has" in problem.message


@given(st.text(max_size=30))
def test_any_value_is_refused_or_stays_one_text(value: str):
    text = 'image_extension: "a${X}b" target_class_mapping { key: "k" value: "v" }'
    filled, problems = fill_variables(text, {"X": value})
    if problems:
        assert filled == text
        return
    message = text_format.Parse(filled, spec_pb2.DatasetConfig())
    assert message.image_extension == f"a{value}b"
    assert dict(message.target_class_mapping) == {"k": "v"}


@given(st.text(max_size=30))
def test_any_bare_value_is_refused_or_stays_one_value(value: str):
    filled, problems = fill_variables("num_epochs: ${X} enable_qat: true", {"X": value})
    if not problems:
        assert filled.split() == ["num_epochs:", value, "enable_qat:", "true"]
