"""Hidden attributes as spreadsheets and programs write them: right, or one sentence."""

import re

import pytest

from splitveil.data.hidden_csv import read_hidden
from splitveil.errors import DataError

TABLE = {"a.png": {"age": "1", "place": "in"}, "b/c.png": {"age": "2", "place": "out"}}


def table_of(tmp_path, content):
    path = tmp_path / "hidden.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_hidden(path)


@pytest.mark.parametrize(
    "content",
    [
        "file,age,place\na.png,1,in\nb/c.png,2,out\n",
        "\ufefffile,age,place\r\na.png,1,in\r\nb/c.png,2,out",
        "file;age;place\na.png;1;in\nb/c.png;2;out\n;;\n",
        "file\tage\tplace\na.png\t1\tin\nb/c.png\t2\tout\n",
        "file, age , place\n a.png, 1,in \n\n  \nb/c.png,2, out\n",
        'place,"file",age\nin,"a.png",1\n"out", "b/c.png",2\n',
        "file,age,place\n./a.png,1,in\nb\\c.png,2,out\n",
        "file,age,place\ra.png,1,in\rb/c.png,2,out\r",
    ],
)
def test_the_table_is_read_however_it_is_written(tmp_path, content):
    assert table_of(tmp_path, content) == TABLE


def test_equal_numbers_are_one_value_and_texts_stay_as_they_are(tmp_path):
    values = ["1", "1.0", " 1", "+1", "1e0", "01", "-0", "0", ".5", "0.50", "1,0", "v1.0", "１"]
    values += ["12345678901234567890", "12345678901234567891"]
    found = table_of(tmp_path, "file;age\n" + "".join(f"{k};{each}\n" for k, each in enumerate(values)))
    assert [row["age"] for row in found.values()] == [
        "1", "1", "1", "1", "1", "1", "0", "0", ".5", ".5", "1,0", "v1.0", "１", *values[-2:],
    ]  # fmt: skip


def test_accents_may_be_written_in_two_ways(tmp_path):
    found = table_of(tmp_path, "file,who\nAme\u0301lie.png,Zoe\u0301\nb.png,Zo\u00e9\n")
    assert found == {"Am\u00e9lie.png": {"who": "Zo\u00e9"}, "b.png": {"who": "Zo\u00e9"}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "needs a column file"),
        ("\n\n", "needs a column file"),
        ("path,age\na.png,1\n", "needs a column file"),
        ("file\na.png\n", "needs a column file"),
        ("file,age,age \na.png,1,1\n", "each with a name of its own"),
        (",file,age\n0,a.png,1\n", "each with a name of its own"),
        ("file,age\na.png,1\na.png,1\n", "two rows for a.png"),
        ("file,age\na.png,1\n./a.png,2\n", "two rows for a.png"),
        ("file,age\n,1\n", "a row without a file"),
        ("file,age\na.png,\n", "no value of age"),
        ("file,age\na.png,  \n", "no value of age"),
        ("file,age\na.png\n", "no value of age"),
        ("file,age\na.png,1,2\n", "3 cells for 2 columns"),
        ("file,age\na.png,NaN\n", "no value of age"),
        ("file,age\na.png,1\nb.png,nan\n", "incomplete row for b.png"),
        ("file,age\na.png,#N/A\n", "no value of age"),
        ("file,sex\na.png,Male\nb.png,male\n", "values 'Male' and 'male' of sex"),
        ('file,age\na.png,"1\nb.png,2\n', "cannot be read as CSV"),
        ("file,who\na.png,Zoé\n".encode("latin-1"), "not in UTF-8"),
        ("file,age\na.png,1\n".encode("utf-16"), "not in UTF-8"),
        (b"PK\x03\x04\xff\xfe a spreadsheet", "not in UTF-8"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)) as error:
        table_of(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [5, True, "absent.csv", ".", "/dev/zero"])
def test_what_is_no_csv_file_is_one_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="hidden_csv="):
        read_hidden(path)
