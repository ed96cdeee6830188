"""CSV and JSON Lines: what a line may say, and the sentence it answers with where it says something else."""

import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from trainer.data.sources import Candidate, SourceOptions, open_source
from trainer.errors import DataError


def write(path: pathlib.Path, content: bytes | str = b"x") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: pathlib.Path, group_column: str | None = None) -> list[Candidate]:
    return list(open_source(str(path), SourceOptions(group_column=group_column)).candidates())


def test_csv_and_jsonl_give_the_same_candidates(tmp_path: pathlib.Path) -> None:
    # A byte order mark, spaces, Windows line ends, other columns and quotes, as spreadsheets write them.
    csv = write(tmp_path / "l.csv", '\ufefflabel, path,note\r\n7,a/1.jpg,x\r\n"big, dog",2.jpg,y\r\n')
    jsonl = write(
        tmp_path / "l.jsonl", '{"path": "a/1.jpg", "label": 7}\n\n{"path": "2.jpg", "label": "big, dog", "n": 1}\n'
    )
    assert read(csv) == [
        Candidate(filename="a/1.jpg", class_names=("7",), locator="2"),
        Candidate(filename="2.jpg", class_names=("big, dog",), locator="3"),
    ]
    assert read(jsonl) == [
        Candidate(filename="a/1.jpg", class_names=("7",), locator="1"),
        Candidate(filename="2.jpg", class_names=("big, dog",), locator="3"),
    ]


def test_labels_splits_weights_and_groups_are_read_from_both(tmp_path: pathlib.Path) -> None:
    csv = write(
        tmp_path / "l.csv",
        "path,labels,split,weight,patient\n1.jpg,cat | sofa,Val,2.5,p1\n2.jpg,dog,train,,7\n3.jpg,dog|1,,1e-3,\n",
    )
    jsonl = write(
        tmp_path / "l.jsonl",
        '{"path": "1.jpg", "labels": ["cat", "sofa"], "split": "validation", "weight": 2.5, "patient": "p1"}\n'
        '{"path": "2.jpg", "labels": ["dog"], "split": "training", "patient": 7}\n'
        '{"path": "3.jpg", "labels": ["dog", 1], "split": null, "weight": 0.001, "patient": null}\n',
    )
    expected = [
        {"class_names": ("cat", "sofa"), "split": "validation", "weight": 2.5, "group": "p1"},
        {"class_names": ("dog",), "split": "train", "weight": 1.0, "group": "7"},
        {"class_names": ("dog", "1"), "split": None, "weight": 0.001, "group": None},
    ]
    for path in (csv, jsonl):
        found = read(path, "patient")
        assert [c.filename for c in found] == ["1.jpg", "2.jpg", "3.jpg"]
        assert [{key: getattr(c, key) for key in expected[0]} for c in found] == expected
    assert [c.group for c in read(csv)] == [None] * 3  # the column means nothing unless it is named


def test_paths_of_a_listing_are_relative_to_it_or_absolute(tmp_path: pathlib.Path) -> None:
    far = write(tmp_path / "far/2.jpg", b"two")
    write(tmp_path / "here/1.jpg", b"one")
    listing = write(tmp_path / "here/l.csv", f"path,label\n1.jpg,a\n{far},b\n../far/2.jpg,b\n")
    source = open_source(str(listing))
    assert [source.read(candidate) for candidate in source.candidates()] == [b"one", b"two", b"two"]


def test_one_file_has_one_spelling_so_that_it_can_be_found_twice(tmp_path: pathlib.Path) -> None:
    listing = write(tmp_path / "l.csv", "path,label\n1.jpg,a\n./1.jpg,b\n.//x/./1.jpg,b\n/x//1.jpg,b\n../1.jpg,c\n")
    found = [(c.filename, c.locator) for c in read(listing)]
    assert found == [("1.jpg", "2"), ("1.jpg", "3"), ("x/1.jpg", "4"), ("/x/1.jpg", "5"), ("../1.jpg", "6")]


HEAD = "path,label,split,weight\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,class\n1.jpg,a\n", "columns path, class; expected path and label.*add label"),
        ("l.csv", "label,label\n1.jpg,a\n", "add path"),
        ("l.csv", "path,label,path\n1.jpg,a,b\n", "names a column twice: path, label, path"),
        ("l.csv", "path,label,labels\n1.jpg,a,b\n", "expected label or labels: leave out one"),
        ("l.csv", "", r"columns \(none\); expected path and label"),
        ("l.csv", "path,label\n1.jpg\n", "line 2 .* has None for 'label'"),
        ("l.csv", "path,label\n1.jpg,big, dog\n", "line 2 .* has more than 2 values"),
        ("l.csv", "path,label\n,a\n", "line 2 .* has '' for 'path'"),
        ("l.csv", "path,label\n./,a\n", "line 2 .* has './' for 'path'"),
        ("l.csv", 'path,label\n"1.jpg,a\n', "is not CSV"),
        ("l.csv", "path,labels\n1.jpg,a||b\n", r"line 2 .* has 'a\|\|b' for 'labels'; expected labels with \| between"),
        ("l.csv", "path,labels\n1.jpg,a|b|a\n", "line 2 .* expected each label once"),
        (
            "l.csv",
            HEAD + "1.jpg,a,,\n2.jpg,a,holdout,\n",
            "line 3 .* has 'holdout' for 'split'; expected one of train,",
        ),
        (
            "l.csv",
            HEAD + "1.jpg,a,test,\n2.jpg,a,eval,\n",
            "line 3 .* has 'eval' for 'split', and other lines name the test split otherwise",
        ),
        ("l.csv", HEAD + "1.jpg,a,,0\n", "line 2 .* has '0' for 'weight'; expected a number above 0"),
        ("l.csv", HEAD + "1.jpg,a,,-1\n", "for 'weight'"),
        ("l.csv", HEAD + "1.jpg,a,,nan\n", "for 'weight'"),
        ("l.csv", HEAD + "1.jpg,a,,1e40\n", "for 'weight'"),  # infinite as float32
        ("l.csv", HEAD + "1.jpg,a,,1e-60\n", "for 'weight'"),  # 0 as float32
        ("l.csv", HEAD + "1.jpg,a,,heavy\n", "for 'weight'"),
        ("l.csv", "path,label\n" + "x" * 2**20 + ",a\n", "line 2 .* has over 1,048,576 characters"),
        ("l.jsonl", "{}\n", r"line 1 .* columns \(none\); .* add path and label"),
        ("l.jsonl", '{"path": "1", "label": "a", "labels": ["a"]}\n', "line 1 .* leave out one"),
        ("l.jsonl", "[1]\n", "line 1 .* is not an object"),
        ("l.jsonl", '{"path": "1"\n', "line 1 .* is not JSON"),
        ("l.jsonl", "[" * 100_000, "line 1 .* is not JSON"),
        ("l.jsonl", '{"path": "1", "label": true}\n', "line 1 .* has True for 'label'"),
        ("l.jsonl", '{"path": 1, "label": "a"}\n', "line 1 .* has 1 for 'path'"),
        ("l.jsonl", '{"path": "1", "labels": "a|b"}\n', r"line 1 .* has 'a\|b' for 'labels'; expected a list"),
        ("l.jsonl", '{"path": "1", "labels": []}\n', r"line 1 .* has \[\] for 'labels'"),
        ("l.jsonl", '{"path": "1", "labels": ["a", null]}\n', "for 'labels'"),
        ("l.jsonl", '{"path": "1", "label": "a", "split": 3}\n', "line 1 .* has 3 for 'split'"),
        ("l.jsonl", '{"path": "1", "label": "a", "weight": "2"}\n', "line 1 .* has '2' for 'weight'"),
        ("l.jsonl", '{"path": "1", "label": "a", "weight": true}\n', "for 'weight'"),
        ("l.jsonl", '{"path": "1", "label": "a", "weight": Infinity}\n', "for 'weight'"),
        ("l.jsonl", '{"path": "1", "label": "a", "weight": 1' + "0" * 400 + "}\n", "for 'weight'"),
        ("l.jsonl", '{"path": "\\ud800", "label": "a"}\n', "line 1 .* for 'path'; expected text"),
        ("l.jsonl", '{"path": "a\\u0000b", "label": "a"}\n', "line 1 .* for 'path'; expected text"),
    ],
)
def test_a_wrong_line_of_a_listing_is_named(tmp_path: pathlib.Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content))


def test_a_group_column_that_is_not_there_is_answered_with_those_that_are(tmp_path: pathlib.Path) -> None:
    csv = write(tmp_path / "l.csv", "path,label,site\n1.jpg,a,x\n")
    with pytest.raises(DataError, match="has the columns path, label, site; --group-column patient is not among them"):
        read(csv, "patient")
    jsonl = write(tmp_path / "l.jsonl", '{"path": "1", "label": "a", "p": 1}\n{"path": "2", "label": "a"}\n')
    with pytest.raises(DataError, match=r"line 2 .* has the columns path, label; --group-column p is not among them"):
        read(jsonl, "p")
    with pytest.raises(DataError, match=r"has \[1\] for 'p'; expected text, or nothing"):
        read(write(tmp_path / "m.jsonl", '{"path": "1", "label": "a", "p": [1]}\n'), "p")


def test_a_listing_that_is_not_text_or_not_there_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"line 2 of .* is not UTF-8: it holds the byte 0xFF"):
        read(write(tmp_path / "l.csv", b"path,label\n\xff\xfe,a\n"))
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none.csv")


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None)
@hypothesis.given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: ("path,labels,split,weight\n" + t).encode("utf-8", "replace")),
        st.dictionaries(
            st.sampled_from(["path", "label", "labels", "split", "weight", "group"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), st.lists, max_leaves=4
            ),
        ).map(lambda row: json.dumps(row).encode()),
    ),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_any_bytes_are_a_listing_or_a_clear_error(tmp_path: pathlib.Path, content: bytes, suffix: str) -> None:
    path = write(tmp_path / f"l.{suffix}", content)
    try:
        candidates = read(path, "group" if b"group" in content else None)
    except DataError as e:
        assert path.name in str(e)
    else:
        for c in candidates:
            assert c.filename
            assert c.class_names
            assert len(set(c.class_names)) == len(c.class_names)
            assert 0 < c.weight < float("inf")


PEAK_OF_A_LISTING = r"""
import pathlib, re, sys
from trainer.data.sources import open_source
count = sum(1 for _ in open_source(sys.argv[1]).candidates())
# Not getrusage: its peak is that of the process before exec, too.
print(count, re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_lines(tmp_path: pathlib.Path) -> None:
    peaks = []
    for count in (1_000, 300_000):
        path = tmp_path / f"{count}.csv"
        with path.open("w") as f:
            f.write("path,label\n")
            f.writelines(f"photos/of/a/kind/{i:09}.jpg,class-{i % 10}\n" for i in range(count))
        command = [sys.executable, "-c", PEAK_OF_A_LISTING, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=os.getcwd())
        found, peak = map(int, done.stdout.split())
        assert found == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 10_000  # kB; 300,000 paths alone would be 25,000


# As spreadsheets and other machines write them.

ROWS = [("a/1.jpg", "Käfer", "train"), ("b/2.jpg", "Frosch", "test")]


def as_table(delimiter: str, before: str = "") -> str:
    lines = [before] if before else []
    return "\r\n".join([*lines, delimiter.join(("path", "label", "split")), *map(delimiter.join, ROWS), ""])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("is_declared", [False, True])
def test_a_table_is_read_with_what_stands_between_its_columns_and_in_its_encoding(
    tmp_path: pathlib.Path, delimiter: str, encoding: str, is_declared: bool
) -> None:
    text = as_table(delimiter, f"sep={delimiter}" if is_declared else "")
    found = read(write(tmp_path / f"l.{'tsv' if delimiter == chr(9) else 'csv'}", text.encode(encoding)))
    assert [(c.filename, *c.class_names, c.split) for c in found] == ROWS
    first = 3 if is_declared else 2
    assert [c.locator for c in found] == [str(first), str(first + 1)]


def test_labels_between_semicolons_keep_their_bars(tmp_path: pathlib.Path) -> None:
    (candidate,) = read(write(tmp_path / "l.csv", "Path;LABELS;weight\n1,5.jpg;cat|sofa;2.5\n"))
    assert (candidate.filename, candidate.class_names, candidate.weight) == ("1,5.jpg", ("cat", "sofa"), 2.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_table(";").encode("cp1252"), r"line 2 of .* the byte 0xE4, which is 'ä' in Windows code page 1252"),
        (b"PK\3\4" + bytes(100), r"is a workbook \(such as of Excel\)"),
        (b"file;class\n1.jpg;a\n", "has the columns file, class; expected path and label"),
        (b"sep=;\npath;label\n1.jpg;a;b\n", "line 3 .* has more than 2 values"),
        (as_table(",").encode("utf-16")[:-1], "is not UTF-16 text"),
    ],
)
def test_a_table_that_leaves_doubt_is_refused_with_what_was_found(
    tmp_path: pathlib.Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "l.csv", content))


def test_json_lines_of_utf_16_are_read(tmp_path: pathlib.Path) -> None:
    (candidate,) = read(write(tmp_path / "l.jsonl", '{"path": "1.jpg", "label": "ä"}\n'.encode("utf-16")))
    assert candidate.class_names == ("ä",)


def test_back_slashes_divide_folders_unless_a_file_has_them_in_its_name(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "photos/cat/1.jpg", b"one")
    write(tmp_path / "a\\b.jpg", b"two")
    listing = write(
        tmp_path / "l.csv", "path,label\nphotos\\cat\\1.jpg,cat\n.\\a\\b.jpg,dog\na\\b.jpg,dog\nC:\\1.jpg,cat\n"
    )
    source = open_source(str(listing))
    found = list(source.candidates())
    assert [c.filename for c in found] == ["photos/cat/1.jpg", "a/b.jpg", "a\\b.jpg", "C:\\1.jpg"]
    assert source.read(found[0]) == b"one"
    assert source.read(found[2]) == b"two"


def test_system_files_that_a_script_has_listed_are_passed_over(tmp_path: pathlib.Path) -> None:
    listing = write(tmp_path / "l.csv", "path,label\na/1.jpg,a\na/Thumbs.db,a\na/.DS_Store,a\na/notes.txt,a\n")
    source = open_source(str(listing))
    assert [c.filename for c in source.candidates()] == ["a/1.jpg", "a/notes.txt"]
    assert source.passed_over.num_ignored == {"Thumbs.db": 1, ".DS_Store": 1}
