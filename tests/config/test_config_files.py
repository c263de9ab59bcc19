"""What is not a config at all gets one sentence; what is too large is refused before it grows."""

import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.config import ConfigError, load_experiment
from emulator.config.yaml12 import DEPTH_MAX, FILE_BYTES_MAX


def test_a_file_that_does_not_exist_is_named(desk):
    with pytest.raises(ConfigError, match=r"^.*c\.yaml: there is no such file$"):
        load_experiment(desk.path)


def test_a_directory_is_named(desk):
    with pytest.raises(ConfigError, match=r": is a directory, not a config$"):
        load_experiment(desk.directory)


def test_a_name_with_a_nul_is_a_config_error():
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment("a\0b")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_a_file_without_content_is_called_empty(desk, text):
    assert desk.error(text) == "c.yaml: is empty; a config starts with 'pirlab: 1'"


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "a list"), ("42\n", "a single value"), ("x\n", "a single")]
)
def test_a_file_that_is_not_a_mapping_is_refused(desk, text, kind):
    message = desk.error(text)
    assert message.startswith("c.yaml:1:1: must be a mapping that starts with 'pirlab: 1', got")
    assert kind in message


def test_a_file_that_is_not_utf_8_names_byte_and_line(desk):
    message = desk.error(b"pirlab: 1\nname: \xff\n")
    assert message == "c.yaml: is not UTF-8 text: byte 0xff in line 2"


def test_a_control_character_is_placed_and_not_printed(desk):
    assert desk.error(b"pirlab: 1\nname: a\x00b\n") == (
        "c.yaml:2:8: not text: it has the character U+0000"
    )


def test_half_a_surrogate_pair_is_no_text(desk):
    message = desk.error_with(r'question: "\ud800"')
    assert "c.yaml:6:11: half a surrogate pair is no text" in message


def test_an_impossible_escape_is_a_config_error(desk):
    assert "not YAML" in desk.error_with(r'question: "\Uffffffff"')


def test_a_file_above_the_limit_is_refused_without_parsing(desk):
    aliases = "a: &a [x]\nb: [" + "*a, " * (10 * 1024 * 1024 // 4) + "]\n"
    before = time.process_time()
    assert desk.error(aliases) == f"c.yaml: is larger than {FILE_BYTES_MAX // 1024} KiB, the limit"
    assert time.process_time() - before < 1


def test_a_billion_laughs_are_refused_at_once(desk):
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    before = time.process_time()
    assert "aliases unfold into more than 20000 values" in desk.error("\n".join(lines))
    assert time.process_time() - before < 2


def test_an_alias_inside_its_own_anchor_is_refused(desk):
    assert "an alias stands inside its own anchor" in desk.error("x-a: &a [*a]\n")


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(desk):
    message = desk.error("a: " + "[" * 100_000)
    assert f"nested more than {DEPTH_MAX} deep" in message
    assert message.startswith("c.yaml:1:27: ")


def test_a_byte_order_mark_and_dos_line_ends_are_read(desk):
    text = "pirlab: 1\r\nname: dos\r\ncluster: {pcpus: 1}\r\nvms: {a: {vcpus: 1}}\r\n"
    assert desk.load(b"\xef\xbb\xbf" + text.encode()).name == "dos"


def test_a_second_document_is_not_overlooked(desk):
    assert "expected a single document" in desk.error("pirlab: 1\n---\npirlab: 1\n")


def test_a_yaml_error_has_place_and_caret(desk):
    assert desk.error("pirlab: 1\nname: [a\nquestion: b\n") == (
        "c.yaml:3:9: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'\n"
        "    question: b\n"
        "            ^"
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.lists(st.sampled_from(list("{}[]:,-&*!|>'\"#%@?\n\t ax1~<=")), max_size=40).map(
            lambda parts: "".join(parts).encode()
        ),
    )
)
def test_whatever_a_file_holds_the_answer_is_a_config_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_experiment(path)


def test_the_processes_of_a_run_do_not_carry_yaml():
    code = (
        "import sys, emulator.config, emulator.config.model\n"
        "print([m for m in ('yaml', 'pydantic', 'numpy', 'difflib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
