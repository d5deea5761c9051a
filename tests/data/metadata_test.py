"""Tables and texts of data sets: cells by name with the lines that they stand on, compared with pandas, and refusals."""

from __future__ import annotations

import io
from typing import Any

import pytest

from cimrl_jax.data import metadata
from cimrl_jax.errors import UserError

SAID: dict[str, Any] = {"where": "data set 'x'", "mend": "fetch it again"}


def test_columns_are_found_by_name_and_rows_keep_their_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfa, b,c\r\n1,"x, y",z\r\n\r\n2\r\n3,"two\r\nlines",\xc3\xa9\r\n')
    found = metadata.table(tmp_path / "t.csv", ("c", "a", "b"), **SAID)
    assert found.columns == {"c": ["z", "", "é"], "a": ["1", "2", "3"], "b": ["x, y", "", "two\nlines"]}
    assert found.lines == [2, 4, 6]


def test_quoted_cells_are_read_as_pandas_does(tmp_path):
    pandas = pytest.importorskip("pandas")
    content = 'n,s\n1,"a ""b"", c"\n2,plain\n3,"on\ntwo lines"\n'
    (tmp_path / "t.csv").write_text(content)
    expected = pandas.read_csv(io.StringIO(content), dtype=str)
    assert metadata.table(tmp_path / "t.csv", ("s",), **SAID).columns["s"] == expected["s"].tolist()


def test_tables_of_blanks_may_have_no_names_and_lines_before_them(tmp_path):
    (tmp_path / "t.txt").write_text("2\nfirst second\na.jpg  1   -1\nb.jpg 1\n")
    found = metadata.table(tmp_path / "t.txt", ("file", "second"), **SAID, delimiter=None, skip=2, names=("file", "first", "second"))
    assert found.columns == {"file": ["a.jpg", "b.jpg"], "second": ["-1", ""]} and found.lines == [3, 4]
    assert metadata.names_of(tmp_path / "t.txt", **SAID, delimiter=None, skip=1) == ["first", "second"]
    found = metadata.table(tmp_path / "t.txt", ("second",), **SAID, delimiter=None, skip=1)
    assert found.columns == {"second": ["1", "1"]} and found.lines == [3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data set 'x': cannot read .*t\.csv \(No such file or directory\); fetch it again"),
        (b"a\n\xff", r"cannot read .*t\.csv \(no UTF-8 at byte 2\)"),
        (b"a,c\n1,2\n", r"t\.csv has no column 'b'; expected a, b: fetch it again"),
        (b"a,b\n\n", r"t\.csv has no row; expected a, b"),
        (b'a,b\n1,"2', r"t\.csv is no table of a, b \(unexpected end of data\)"),
    ],
)
def test_files_that_are_no_such_table_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        metadata.table(tmp_path / "t.csv", ("a", "b"), **SAID)


def test_texts_come_in_order_with_the_reasons_of_those_that_cannot_be_had(tmp_path):
    for number in range(200):
        (tmp_path / str(number)).write_text(f"text {number}")
    (tmp_path / "7").write_bytes(b"caf\xe9!")
    files = [None if number == 5 else tmp_path / str(number) for number in range(201)]
    texts, reasons = metadata.contents(files)
    assert [texts[5], texts[7], texts[200]] == [None] * 3
    assert all(text == f"text {number}" for number, text in enumerate(texts) if number not in (5, 7, 200))
    assert {row: kind for row, (kind, _) in reasons.items()} == {7: "undecodable text", 200: "missing file"}
    assert reasons[7][1].endswith("7 (no UTF-8 at byte 3)") and str(files[200]) in reasons[200][1]
    assert metadata.contents(files[7:8], errors="ignore") == (["caf!"], {})
