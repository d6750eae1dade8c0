"""One grammar for sizes and counts of tokens."""

import pytest

from devctl.placement.budget import parse_max_memory, parse_reserve, parse_speeds
from devctl.units import AmbiguousSizeError, parse_count, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30),
        (" 80 gib ", 80 * 2**30),
        ("7.5GB", 7_500_000_000),
        ("7.5gB", 7_500_000_000),
        ("512MiB", 2**29),
        ("4096B", 4096),
        ("1e3kB", 10**6),
        (".5TiB", 2**39),
        ("9007199254740993B", 2**53 + 1),
        ("0B", 0),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("64gb", "bits or bytes", "64GB"),
        ("64Gb", "bits or bytes", "64GB"),
        ("8b", "bits or bytes", "8B"),
        ("80G", "80GB", "80GiB"),
        ("80g", "80GB", "80GiB"),
        ("80", "80GiB", "80B"),
        ("0", "0GiB", "0B"),
        ("0.1", "0.1GiB", "0.1B"),
        ("1e9", "1e9GiB", "1e9B"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_naming_both(text, first, second):
    with pytest.raises(AmbiguousSizeError) as error:
        parse_size(text)
    assert first in str(error.value)
    assert second in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["10Gi", "10i", "10iB", "GiB", "", "-1GiB", "1_0GiB", "１GiB", "1GiB2", "10%", "0x1B"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.1B", "0.0000000001GiB", "1e-9KB"])
def test_less_than_a_byte_is_refused(text):
    with pytest.raises(ValueError, match="less than a byte"):
        parse_size(text)
    assert (parse_size("0B"), parse_size("1.5B")) == (0, 1)


@pytest.mark.parametrize("text", ["8388608TiB", "1e999GiB", "9" * 400 + "B"])
def test_what_no_machine_has_is_refused(text):
    with pytest.raises(ValueError, match="too large"):
        parse_size(text)


@pytest.mark.parametrize(
    ("read", "text"),
    [(parse_max_memory, "0={}"), (parse_reserve, "{}"), (parse_reserve, "0={}"), (parse_speeds, "0={}")],
)
@pytest.mark.parametrize("size", ["64gb", "80G", "80", "0.1"])
def test_every_option_has_this_grammar(read, text, size):
    with pytest.raises(ValueError, match=f"'{size}' "):
        read([text.format(size)])


def test_a_reserve_without_a_unit_may_have_been_a_share():
    with pytest.raises(ValueError, match=r"'0\.1' has no unit.*0\.1GiB.*a share has a %, like 10%"):
        parse_reserve(["0.1"])


@pytest.mark.parametrize("text", ["1/2%", "1e999999999%", "-1%", "101%", "%", "１０%", "nan%"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match="no share"):
        parse_reserve([text])


@pytest.mark.parametrize(("text", "count"), [("4096", 4096), ("32k", 32768), ("128K", 131072), ("1M", 2**20), ("0", 0)])
def test_tokens_are_counted_in_thousands_as_the_names_of_models_do(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "1.5k", "-1", "32kb", "1e3", "9" * 400, "３2k"])
def test_what_is_no_count_of_tokens_is_refused(text):
    with pytest.raises(ValueError, match="is not a count of tokens"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("2min", 120), ("1.5h", 5400), ("500ms", 0.5), (" 3 s ", 3), ("60", 60), ("2m", 120)],
)
def test_durations_are_of_seconds_unless_they_have_another_unit(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5d", "2M", "-1s", "1e3s", "nan", "infs", "٣s", "0s", "0.0min", "1" * 40 + "s"]
)
def test_what_is_no_time_is_none(text):
    with pytest.raises(ValueError):
        parse_seconds(text)
