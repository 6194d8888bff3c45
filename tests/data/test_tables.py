"""Text tables in the forms that programs write them."""

from __future__ import annotations

import gzip
import itertools
import time
from typing import Any

import numpy as np
import pytest

from xpnet.data import DataError
from xpnet.data.inputs import InputRecord
from xpnet.data.tables import is_table, open_table

ROWS = [(1.5, -2.25, "cat"), (0.125, 3.0, "dög"), (1e-3, 40.0, "cat"), (7.0, 8.5, "dög")]
TITLES = ("width", "length", "kind")


def text(separator=",", decimal=".", titles=TITLES, rows=ROWS):
    lines = [separator.join(titles)] if titles else []
    for *numbers, label in rows:
        lines.append(separator.join([*(f"{v:.6f}".replace(".", decimal) for v in numbers), label]))
    return "\n".join(lines) + "\n"


def read(path, numbers=(0, 1), texts=(2,)):
    table = open_table(path)
    found = table.read(numbers, texts)
    return table, found.numbers, found.texts[0] if texts else []


FORMS = [
    (separator, decimal, encoding, ending)
    for separator, decimal in ((",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", "."), (" ", "."))
    for encoding, ending in (
        ("utf-8", ".csv"),
        ("utf-8-sig", ".csv"),
        ("utf-16", ".csv"),
        ("latin-1", ".csv"),
        ("utf-8", ".csv.gz"),
    )
]


@pytest.mark.parametrize(("separator", "decimal", "encoding", "ending"), FORMS)
@pytest.mark.parametrize("titles", [TITLES, None])
def test_every_form_gives_the_same_numbers(separator, decimal, encoding, ending, titles, tmp_path):
    path = tmp_path / f"t{ending}"
    content = text(separator, decimal, titles).encode(encoding)
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    table, numbers, labels = read(path)
    assert table.titles == titles
    np.testing.assert_array_equal(numbers, np.array([row[:2] for row in ROWS], np.float32))
    assert labels == [row[2] for row in ROWS]


def test_which_files_are_tables():
    assert all(is_table(name) for name in ("a.csv", "a.TSV", "a.csv.gz", "b/c.tab"))
    assert not any(is_table(name) for name in ("a.txt", "a.gz", "csv", "a.npz"))


@pytest.mark.parametrize(
    ("head", "titled"),
    [
        ("0,1,label", True),  # as pandas numbers columns
        ("2019,2020,label", True),
        ("5.1,3.5,cat", False),
        ("5,6,cat", False),  # the class comes again
        ("1,0,label", False),
        ("a,1,label", True),  # a word above numbers
        ("#a,b,label", True),
    ],
)
def test_titles_that_are_numbers(head, titled, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(head + "\n" + "".join(f"{i * 0.5},{i % 3},{('cat', 'dog')[i % 2]}\n" for i in range(8)))
    assert (open_table(path).titles is not None) is titled
    assert len(read(path)[1]) == 8 + (not titled)


@pytest.mark.parametrize(
    ("head", "whole", "titled"), [("0,1,2,3", False, True), ("0,1,2,3", True, True), ("0.5,1,2,3", False, False)]
)
def test_titles_that_are_numbers_alone(head, whole, titled, tmp_path):
    path = tmp_path / "t.csv"
    step = 1 if whole else 0.25
    path.write_text(head + "\n" + "".join(f"{i * step},{i + step},{i * 2},{i % 2}\n" for i in range(8)))
    assert (open_table(path).titles is not None) is titled


RNG = np.random.default_rng(0)
GRADES = RNG.integers(1, 6, (60, 12)).tolist()
SPECTRA = [[f"{v:.4f}" for v in row] for row in RNG.normal(size=(60, 8)).tolist()]
WORDS = [("low", "mid", "high")[k % 3] for k in range(60)]
NUMBERS_AS_TITLES: dict[str, tuple[list[str], Any, Any]] = {
    "wave lengths": ([*map(str, range(850, 866, 2)), "label"], SPECTRA, WORDS),
    "falling wave numbers": ([*map(str, range(4000, 3968, -4)), "label"], SPECTRA, WORDS),
    "doses": (["0.1", "0.5", "1", "2.5", "5", "10", "20", "50", "diagnosis"], SPECTRA, WORDS),
    "years": (["2000", "2004", "2008", "2012", "2016", "2018", "2020", "2024", "class"], SPECTRA, WORDS),
    "one year": (["2020", "outcome"], [row[:1] for row in GRADES], WORDS),
    "pandas, above whole numbers": ([*map(str, range(13))], GRADES, [k % 2 for k in range(60)]),
    "pandas, above fractions": ([*map(str, range(9))], SPECTRA, [k % 2 for k in range(60)]),
    "from 1": ([*map(str, range(1, 14))], GRADES, [k % 2 for k in range(60)]),
    "from 1, with a word": ([*map(str, range(1, 13)), "outcome"], GRADES, WORDS),
    "gaps": ([*map(str, [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14]), "outcome"], GRADES, WORDS),
}


def lines(head, x, y, mark=".", separator=","):
    rows = [head] if head else []
    return "".join(
        separator.join(str(c).replace(".", mark) for c in row) + "\n" for row in [*rows, *([*r, k] for r, k in zip(x, y))]
    )


@pytest.mark.parametrize("case", NUMBERS_AS_TITLES)
def test_titles_that_are_numbers_are_told_from_data(case, tmp_path):
    head, x, y = NUMBERS_AS_TITLES[case]
    path = tmp_path / "t.csv"
    path.write_text(lines(head, x, y))
    table = open_table(path)
    assert table.titles == tuple(head)
    assert case == "pandas, above fractions" or "is taken for titles; if it holds data" in table.notes[0]
    path.write_text(lines(None, x, y))
    assert open_table(path).titles is None
    # With the model that was trained on it: the same titles are titles, and rows without them are rows.
    record = InputRecord("table", (len(head) - 1,), columns=tuple(head[:-1]), target=head[-1], target_column=len(head) - 1)
    assert open_table(path, record, {str(k) for k in y}).titles is None
    path.write_text(lines(head[:-1], [r[:-1] for r in x], [r[-1] for r in x]))
    assert open_table(path, record, {str(k) for k in y}).titles == tuple(head[:-1])


@pytest.mark.parametrize("cell", ["NA", "?", "", "nan", "<0.1", "n/a", "-"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_first_row_with_a_value_that_is_none_is_no_title(cell, known, labelled, tmp_path):
    rows = [[cell, *SPECTRA[0][1:]], *SPECTRA[1:]]
    path = tmp_path / "t.csv"
    path.write_text(lines(None, rows, WORDS) if labelled else lines(None, [r[:-1] for r in rows], [r[-1] for r in rows]))
    record = InputRecord("table", (8,), target_column=8, separator=",", decimal=".") if known else None
    table = open_table(path, record, WORDS if known else ())
    assert table.titles is None
    with pytest.raises(DataError, match="line 1, column 0"):
        table.read([0, 1])


def test_a_model_of_rows_without_titles_takes_numbers_for_data(tmp_path):
    head, x, _ = NUMBERS_AS_TITLES["wave lengths"]
    path = tmp_path / "t.csv"
    path.write_text(lines(head[:-2], [r[:-1] for r in x], [r[-1] for r in x]).replace("\n", ",1\n", 1))
    record = InputRecord("table", (8,), target_column=8, separator=",", decimal=".")
    assert open_table(path, record, WORDS).titles is None
    path.write_text(lines(list("abcdefgh"), [r[:-1] for r in x], [r[-1] for r in x]))
    assert open_table(path, record, WORDS).titles == tuple("abcdefgh")


def test_what_decimals_are_follows_the_training_data(tmp_path):
    path = tmp_path / "t.csv"

    def opened(text, decimal, separator=";"):
        path.write_text(text)
        table = open_table(path, InputRecord("table", (2,), target_column=2, separator=separator, decimal=decimal))
        found = table.read([0, 1])
        return found.numbers.tolist(), " ".join([*table.notes, *found.notes])

    found, said = opened("185;4.911\n163;3.311\n", ",")
    assert found == [[185, 4911], [163, 3311]]
    assert "4.911 is read as 4911" in said
    found, said = opened("185;0.911\n163;3.311\n", ",")  # a group of thousands does not begin with 0
    assert found[0] == [185, pytest.approx(0.911)]
    assert "decimal points, and in the training data commas" in said
    assert opened("185;4.911\n", ".") == ([[185, pytest.approx(4.911)]], "columns are separated by semicolons")
    assert "4.911 is read with a decimal point" in opened("185;4.911\n", "")[1]
    found, said = opened("185\t4,911\n", "", "\t")
    assert found == [[185, pytest.approx(4.911)]]
    assert "4,911 is read as 4.911, not as thousands" in said
    with pytest.raises(DataError, match="holds numbers such as 4,911, and the training data have decimal points"):
        opened("185\t4,911\n", ".", "\t")
    path.write_text("a;b;c\n1,5;0.382;x\n2,5;0.5;y\n")
    with pytest.raises(DataError, match=r"got '0\.382' in a file with decimal commas"):
        read(path)


def test_a_decimal_comma_far_down_is_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"4.{100 + i};{2 * i};x\n" for i in range(500)) + "1,5;2;x\n")
    found = open_table(path).read([0, 1])
    assert (found.decimal, found.numbers[0, 0]) == (",", 4100)
    assert "decimal commas" in found.notes[0]
    assert found.notes[1].startswith("4.100 is read as 4100")


def said_of(path):
    table = open_table(path)
    found = table.read([0, 1])
    return found.numbers.tolist(), " ".join([*table.notes, *found.notes])


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_point_beside_decimal_commas_is_said_to_be_between_thousands(separator, far, tmp_path):
    path = tmp_path / "t.csv"

    def of(*rows):
        path.write_text("".join("7;8,5;x\n" for _ in range(300 * far)).replace(";", separator))
        with path.open("a") as file:
            file.write("".join(separator.join(row) + "\n" for row in rows))
        return said_of(path)

    found, said = of(("0,81", "2,5", "x"), ("4.823", "3,5", "y"))
    assert found[-1] == [4823, 3.5]
    assert "4.823 is read as 4823" in said
    for row in (("1.234,5", "2,5", "y"), ("1.234.567", "2,5", "y")):  # which show what a point is
        found, said = of(("4.823", "3,5", "y"), row)
        assert found[-2][0] == 4823
        assert "is read as" not in said
    assert "is read as" not in of(("0,81", "2,5", "4.823"), ("7", "3,5", "x.y"))[1]  # a class is no number


def quoted(rows):
    return "".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) + "\n" for row in rows)


@pytest.mark.parametrize("titles", [[], [("a", "b", "y")], [("body mass", "b", "y")]])
def test_quoted_decimal_commas_between_commas(titles, tmp_path):
    path = tmp_path / "t.csv"
    rows = [("11,15", "1,15", "b"), ("12", "-,5", "c"), ("1.234,5", "1,234", "c")]
    path.write_text(quoted(titles + rows))
    assert open_table(path).separator == ","
    found, said = said_of(path)
    np.testing.assert_allclose(found, [[11.15, 1.15], [12, -0.5], [1234.5, 1.234]], rtol=1e-6)
    assert "numbers have decimal commas" in said


@pytest.mark.parametrize(
    "rows",
    [
        [("1,234", "5", "b"), ("2,345", "6", "c")],  # thousands
        [("1,5", "2.5", "b"), ("2,5", "6", "c")],  # written in two ways
        [("1,5", "4.823", "b"), ("2,5", "6", "c")],
        [("1,5 kg", "2", "b"), ("2,5 kg", "6", "c")],
    ],
)
def test_other_commas_in_quotes_are_no_decimal_commas(rows, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(quoted(rows))
    with pytest.raises(DataError, match=r"expected numbers, got '[12],"):
        said_of(path)


def test_quoted_words_with_commas_leave_decimal_points(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(quoted([("4.823", "1.5", "a,b"), ("2.5", "6", "1,5")]))
    assert said_of(path) == (np.array([[4.823, 1.5], [2.5, 6]], np.float32).tolist(), "")


def test_points_that_turn_out_to_be_between_thousands_are_said_once(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("4.823;2;x\n" * 300)
    assert "4.823 is read with a decimal point" in said_of(path)[1]
    with path.open("a") as file:
        file.write("0,81;2;x\n")
    found, said = said_of(path)
    assert found[0] == [4823, 2]
    assert "4.823 is read as 4823" in said
    assert "with a decimal point" not in said


@pytest.mark.parametrize("titles", [["a", "class"], None])
def test_one_column_of_decimal_commas(titles, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(lines(titles, [[f"{160 + i / 8:.1f}"] for i in range(60)], WORDS, ",", ";"))
    table = open_table(path)
    assert (table.separator, table.decimal, table.width) == (";", ",", 2)
    path.write_text("160,5\n161,5\n")  # without the class
    table = open_table(path, InputRecord("table", (1,), target_column=1, separator=";", decimal=","))
    assert (table.separator, table.width) == (";", 1)
    assert table.read([0]).numbers.tolist() == [[160.5], [161.5]]


def test_comments_at_the_top(tmp_path):
    path = tmp_path / "t.csv"
    for comments in ("# measured on Monday\n# by hand\n", "# measured on Monday\n", "# by hand, on Monday, at noon, twice\n"):
        path.write_text(comments + GOOD)
        table, numbers, _ = read(path)
        assert table.titles == ("a", "b", "label")
        assert len(numbers) == 3
        assert "of comments at the top" in table.notes[0]
    path.write_text("# two\n#a,b,label\n1,2,x\n")  # as numpy.savetxt writes them
    assert read(path)[0].titles == ("a", "b", "label")


def test_what_is_known_of_the_data_decides(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("cat,a,b\n")
    assert open_table(path).titles == ("cat", "a", "b")
    assert open_table(path, labels=("cat",)).titles is None
    path.write_text("7,8\n1,2\n")
    assert open_table(path).titles is None
    assert open_table(path, InputRecord("table", (2,), columns=("8", "7"))).titles == ("7", "8")


def test_a_separator_that_the_file_names_itself(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sep=;\na;b\n1;2\n")
    table, numbers, _ = read(path, texts=())
    assert (table.separator, table.titles) == (";", ("a", "b"))
    assert numbers.tolist() == [[1, 2]]
    path.write_text("sep=;\na;b\n1;x\n")
    with pytest.raises(DataError, match="line 3, column 'b'"):
        read(path, texts=())


def test_a_decimal_comma_far_down(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{i};{2 * i};x\n" for i in range(500)) + "1,5;2;x\n")
    assert read(path)[1][-1].tolist() == [1.5, 2.0]
    path.write_text("".join(f"{i}.5;{2 * i};x\n" for i in range(500)) + "1,5;2;x\n")
    with pytest.raises(DataError, match=r"line 1, column 0.*got '0\.5' in a file with decimal commas"):
        read(path)


def test_thousands_with_points_before_decimal_commas(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;b;c\n1.234,5;-2;x\n12.345.678,25;0,5;y\n")
    np.testing.assert_array_equal(read(path)[1], np.array([[1234.5, -2], [12345678.25, 0.5]], np.float32))


GOOD = "a,b,label\n" + "1,2,x\n" * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + "3,oops,y\n", "line 5, column 'b': expected numbers, got 'oops'"),
        (GOOD + "\n\n3,,y\n", "line 7, column 'b': expected numbers, the cell is empty"),
        (GOOD + '1,2,"over\ntwo lines"\n3,oops,y\n', "line 7, column 'b': expected numbers, got 'oops'"),
        (GOOD + "3,NaN,y\n", "line 5, column 'b' holds a number that is not finite; fill"),
        (GOOD + "3,1e39,y\n", "line 5, column 'b' holds a number that is not finite in float32"),
        (GOOD + "3,1_000,y\n", "line 5, column 'b': expected numbers, got '1_000'"),
        (GOOD + "3,y\n", "line 5 has 2 columns, expected 3, separated by commas"),
        ("", "holds no rows"),
        ("a,b,label\n", "holds titles and no rows"),
        ("1,2,x\n1,oops,x\n", "line 2, column 1: expected numbers, got 'oops'"),
        (b"PK\x03\x04rest", "a zip or Excel file; export the table as CSV"),
        (b"\x89PNG\r\n\x1a\n\x01\x02", "not a text file"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], "a damaged .gz file"),
        (gzip.compress(b"0" * (1 << 27), mtime=0), "expands to more than 64 MB"),
        (GOOD.encode() + b"3,\0,y\n", "holds the character NUL, first at byte 30"),
        (b"\xff\xfea", "not a text file: .* in UTF-16"),
    ],
)
def test_what_is_wrong_and_in_which_line(content, says, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_table(tmp_path / "t.csv")


def test_a_long_cell_is_quoted_in_part(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(GOOD + f"3,{'z' * 100_000},y\n")
    with pytest.raises(DataError, match="line 5") as caught:
        read(path)
    assert len(str(caught.value)) < 1000


def test_the_digits_that_float32_loses_are_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{1_700_000_000 + i},{i}\n" for i in range(100)))
    rounding = open_table(path).read([0, 1]).rounding
    assert rounding[0] == 64  # half of the distance between numbers of float32 there
    assert rounding[1] == 0


def test_the_time_grows_with_the_number_of_rows(tmp_path):
    def seconds(count):
        path = tmp_path / f"{count}.csv"
        path.write_text("a,b,c\n" + "".join(f"{i},{i / 7:.4f},{i / 3:.5f}\n" for i in range(count)))
        began = time.perf_counter()
        read(path)
        return time.perf_counter() - began

    few, many = (min(seconds(count) for _ in range(3)) for count in (5_000, 40_000))
    assert many < 40 * few  # eight times as many rows; quadratic would be 64


def test_whole_numbers_in_other_scripts_and_signs(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n+1, 2 ,x\n-3,4e0,y\n")
    assert read(path)[1].tolist() == [[1, 2], [-3, 4]]


def test_all_separators_are_found_with_titles_that_hold_others(tmp_path):
    path = tmp_path / "t.csv"
    for separator, other in itertools.permutations((",", ";", "\t"), 2):
        path.write_text(
            f'"a{other}1"{separator}b{separator}c\n' + "".join(f"{i}{separator}{i}{separator}x\n" for i in range(5))
        )
        table, numbers, _ = read(path)
        assert (table.separator, table.titles) == (separator, (f"a{other}1", "b", "c"))
        assert numbers[:, 0].tolist() == [0, 1, 2, 3, 4]
