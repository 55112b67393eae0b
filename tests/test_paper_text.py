"""What is said of the paper (arXiv 2603.18795): its sections, equations, tables, figures exist, and its words are its
own.

How to refer. `section 3.5`, `paper 3.5`, `(3.5)` or `(3.5, ...)`; in settings.ini also `# 3.5`. `Eq. 5-7`, `Table 2`,
`Figure 6`, `appendix B`, `Algorithm 1, line 11`. A section of other work has its name in front: `AURORA, section 4.3`.
One of the words that data/paper/sections.json keeps for a section must stand near every reference to it (a quotation is
enough): losses are 3.4, data are 3.5. A benchmark that is named beside a table must be a column of it.

How to quote. Words of the paper stand in double quotes and carry their section: `"..." (paper 3.5)`, or in front `3.5:
"..."`. `...` and `[...]` leave words out; case, hyphens and spaces do not count. What the paper does not say in these
words has no double quotes in a sentence that speaks of the paper.

The paper's text is not ours to ship. Where somebody has it as .txt, PERCEPTIO_PAPER names its folder (else
data/paper/text, which git ignores); without it the words are not compared, everything else is."""

import ast
import io
import json
import os
import re
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, cells, source

FACTS = json.loads((ROOT / "data/paper/sections.json").read_text(encoding="utf-8"))
FOLDER = Path(os.environ.get("PERCEPTIO_PAPER") or ROOT / "data/paper/text")
AT_HAND = pytest.mark.skipif(
    not any(FOLDER.glob("*.txt")),
    reason=f"the paper's text is not at hand: no .txt in {FOLDER} (PERCEPTIO_PAPER names another folder)",
)


@dataclass
class Passage:
    place: str  # file and cell
    text: str  # a paragraph, a comment, a docstring or another string
    near: str  # the text and the code beside it
    prose: bool  # words for a reader: what is quoted here is quoted


# --- what is read


def paragraphs(place, text):
    "Paragraphs and rows of tables, each a passage."
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?=\||- |\d\. )", text):
        yield Passage(place, " ".join(block.split()), block, True)


DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
REFERS = re.compile(
    r"(?:[Ss]ections?|[Pp]aper,?|§|Tables?|Figures?|Eqs?\.|Algorithm|[Ee]quations?|Figs?\.) ?\d|\([2-5]\.\d|[Aa]ppendix"
)
QUOTES = re.compile(r'#.*"[^"]*"|"""')


def code(place, text):
    "Comments with their line, strings with theirs; what is given to expect_fail is wrong on purpose."
    if not REFERS.search(text) and not QUOTES.search(text):
        return
    text = re.sub(r"^[%!].*", "", text, flags=re.M)  # Jupyter's magics
    lines, tree = text.splitlines(), ast.parse(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield Passage(place, token.string.lstrip("#| "), token.line, True)
    nodes = list(ast.walk(tree))
    fails = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "expect_fail"]
    wrong = {child for call in fails for child in ast.walk(call)}
    documents = {n.body[0].value for n in nodes if isinstance(n, DOCUMENTED) and isinstance(n.body[0], ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in wrong:
            if node in documents or REFERS.search(node.value):
                near = "\n".join([*lines[max(0, node.lineno - 3) : node.end_lineno], node.value])
                yield Passage(place, " ".join(node.value.split()), near, node in documents)


def read(path):
    "The passages of a notebook, a module, a page or a settings file."
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    if path.suffix == ".ipynb":
        for number, cell in enumerate(cells(path)):
            kind = paragraphs if cell["cell_type"] == "markdown" else code
            yield from kind(f"{name}, cell {number}", source(cell))
    elif path.suffix == ".py":
        yield from code(name, path.read_text(encoding="utf-8"))
    elif path.suffix == ".ini":
        heading = ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            heading = line if line.startswith("# ---") else heading
            if "#" in line:
                yield Passage(f"{name}, line {number}", line.split("#", 1)[1].strip(), heading + line, True)
    else:
        yield from paragraphs(name, path.read_text(encoding="utf-8"))


@cache
def passages():
    notebooks = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    tests = [p for p in (ROOT / "tests").rglob("*.py") if p.name != Path(__file__).name]
    pages = [*ROOT.glob("*.md"), *(ROOT / "figures").glob("*.md"), ROOT / "settings.ini"]
    return [passage for path in sorted([*notebooks, *tests, *pages]) for passage in read(path)]


# --- references

SECTION = r"[2-5]\.\d(?!\.?\d)"
HEADING = r"[1-5](?:\.\d)?(?!\.?\d)"  # after the word "section"
NUMBERS = r"(\d+(?:(?:, | and | or | to |[-–])\d+(?![\w.]*\d))*)"
REFERENCES = {
    "sections": (
        rf"(?:[Ss]ections?|§) ({HEADING}(?:(?:, | and | or | to |[-–]){HEADING})*)",
        rf"\b[Pp]aper,? ({SECTION}(?:(?:, | and ){SECTION})*)",
        rf"\(({SECTION}(?:(?:, | and |; ){SECTION})*)(?=[),;:])",
        r"[Aa]ppendix ([A-Z])\b",
    ),
    "equations": (rf"\bEqs?\. ?{NUMBERS}", rf"\b[Ee]quations? {NUMBERS}"),
    "tables": (rf"\bTables? {NUMBERS}",),
    "figures": (rf"\b(?:Figures?|Figs?\.) {NUMBERS}",),
    "algorithms": (r"\bAlgorithm (\d+)",),
}
IN_SETTINGS = (rf"^({SECTION}(?:, {SECTION})*)(?=$|[ :,;])", rf"from ({SECTION})\b")
OTHER_WORK = re.compile(r"(?:AURORA|et al\.,? \(?\d{4}\)?),? \(?$")


def numbers(text):
    "'5-7 and 9' as 5, 6, 7, 9."
    for part in re.split(r", | and | or |; ", text):
        ends = re.split(r"[-–]| to ", part)
        whole = len(ends) == 2 and all(end.isdigit() for end in ends)
        yield from map(str, range(int(ends[0]), int(ends[1]) + 1)) if whole else ends


def references(passage):
    "What a passage refers to: sections | equations | tables | figures | algorithms, and a number or letter."
    for kind, patterns in REFERENCES.items():
        settings = IN_SETTINGS if kind == "sections" and passage.place.startswith("settings.ini") else ()
        for match in (m for pattern in (*patterns, *settings) for m in re.finditer(pattern, passage.text)):
            if not OTHER_WORK.search(passage.text[: match.start()]):
                yield from ((kind, number) for number in numbers(match[1]))


def plain(text):
    return re.sub(r"[^\w.+=]", "", text.lower())


def columns(number):
    held = json.loads((ROOT / "data/paper/reported_results.json").read_text(encoding="utf-8"))["tables"]
    return held[f"Table {number}"]["columns"]


COLUMNS = {number: columns(number) for number in FACTS["tables"]}
BENCHMARKS = sorted(
    {name for names in COLUMNS.values() for name in names if re.search(r"[A-Z]{2}", name)} - {"SQA test"}
)


def wrong_references(found):
    "References to what the paper does not have, and sections without a word of theirs near them."
    for passage in found:
        quoted = {quotation.section for quotation in quotations(passage)}  # its own words stand near it
        for kind, number in references(passage):
            fact = FACTS[kind].get(number)
            if fact is None:
                yield f"{passage.place}: the paper has no {kind} {number}: {passage.text[:160]}"
            elif kind == "sections" and number not in quoted:
                words = [fact["title"], *fact["about"]]
                if not any(plain(word) in plain(passage.near) for word in words):
                    yield f"{passage.place}: section {number} is about {words}: {passage.text[:160]}"
        for last in re.findall(r"Algorithm 1, lines? (?:\d+[-–])?(\d+)", passage.text):
            if int(last) > FACTS["algorithms"]["1"]["lines"]:
                yield f"{passage.place}: Algorithm 1 has no line {last}"


def wrong_tables(found):
    "Benchmarks beside tables none of which has such a column."
    for passage in found:
        tables = {number for kind, number in references(passage) if kind == "tables" and number in COLUMNS}
        for name in BENCHMARKS if tables else ():
            if re.search(rf"\b{re.escape(name)}(?![\w+-])", passage.text):
                if not any(name in COLUMNS[number] for number in tables):
                    yield f"{passage.place}: {name} is not in Table {', '.join(sorted(tables))}: {passage.text[:160]}"


# --- quotations

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
BEHIND = re.compile(rf"^[*.]*,? ?\((?:paper |section |appendix )?({HEADING}|[ABC])(?=[),;:])")
BEFORE = re.compile(rf"(?:^|[\s(])(?:[Pp]aper |[Ss]ection )?({SECTION})(?: of the paper)?: $")
OF_THE_PAPER = re.compile(rf"\b[Pp]aper\b|[Ss]ection {SECTION}")


@dataclass
class Quotation:
    place: str
    words: str
    section: str  # "" = not marked as the paper's
    claimed: bool  # its sentence speaks of the paper


def quotations(passage):
    text = re.sub(r"`[^`]*`", "`", passage.text)
    for match in QUOTED.finditer(text) if passage.prose else ():
        before, behind = text[: match.start()], text[match.end() :]
        mark = BEHIND.search(behind) or BEFORE.search(before)
        sentence = re.split(r"[.?!] ", before)[-1] + re.split(r"[.?!;:]", behind)[0]
        claimed = bool(OF_THE_PAPER.search(sentence))
        yield Quotation(passage.place, match[1] or match[2], mark[1] if mark else "", claimed)


def letters(text):
    "Letters and digits only, without TeX commands and the (i), (ii) of lists, of which text extraction lost some."
    text = re.sub(r"\\[a-zA-Z]+|\(i+v?\)", "", text)
    return re.sub(r"[^a-z0-9]", "", text.lower())


def in_order(words, text):  # text: as `letters` gives it
    "Whether the parts of a quotation between its ... stand in the text one after the other."
    at = 0
    for part in filter(None, map(letters, re.split(r"\[?\.\.\.\]?|…", words))):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def unmarked(found):
    "Double quotes in a sentence about the paper, without the section the words are from."
    for quotation in (q for passage in found for q in quotations(passage)):
        if quotation.claimed and not quotation.section and len(quotation.words.split()) > 1:
            yield f"{quotation.place}: whose words are these? {quotation.words}"


def wrong_quotations(found, paper):  # paper: section -> its letters
    "Marked words that their section does not have, and words of the paper without a mark."
    for quotation in (q for passage in found for q in quotations(passage)):
        words, section = quotation.words, quotation.section
        if section and not in_order(words, paper[section]):
            yield f"{quotation.place}: not in section {section} of the paper: {words}"
        elif not section and len(re.findall(r"[A-Za-z]+", words)) > 3 and in_order(words, paper["whole"]):
            yield f"{quotation.place}: words of the paper without their section: {words}"


# --- the paper's text


def divided(text):
    "Section -> its text; a section has its subsections' text too, `whole` is everything but the references."
    text = " ".join(
        re.sub(r"\d*Y\. Li et al\.|Perceptio: Perception Enhanced VLMs [\w ]+?Generation\d*", "", text).split()
    )
    starts, at = {}, 0
    for number, fact in FACTS["sections"].items():
        at = text.index(f"{number} {fact['title']}", at)
        starts[number] = at
    end_of_body = text.index(" References 1.")
    ends = dict(zip(starts, [*list(starts.values())[1:], len(text)]))
    ends["5"] = end_of_body
    pieces = {number: text[starts[number] : ends[number]] for number in starts}
    pieces["A"] += text[text.index("Algorithm 1 Soft") : text.index("Fig. 6: ")]  # printed on a page of its own
    for number in [n for n in pieces if n.isdigit()]:
        pieces[number] += "".join(piece for n, piece in pieces.items() if n.startswith(f"{number}."))
    return pieces | {"whole": text[:end_of_body] + text[starts["A"] :]}


@cache
def paper():
    return {number: letters(text) for number, text in divided(the_text()).items()}


def the_text():
    files = sorted(FOLDER.glob("*.txt"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


# --- tests


def test_every_reference_exists_and_is_about_its_section():
    assert list(wrong_references(passages())) == []


def test_benchmarks_stand_in_the_tables_that_have_them():
    assert list(wrong_tables(passages())) == []
    assert {"AI2D", "MME-P", "MMBench", "MMStar", "RefCOCO", "SEED-Bench"} <= set(BENCHMARKS)
    assert (
        len(list(wrong_tables(passage("Table 5 has AI2D and MMBench.") + passage("Tables 2 and 3 have MME-P.")))) == 2
    )
    assert list(wrong_tables(passage("MMBench and AI2D of Table 1 and 4."))) == []


def test_every_quotation_of_the_paper_names_its_section():
    assert list(unmarked(passages())) == []


def test_there_is_something_to_check():
    found = [reference for passage in passages() for reference in references(passage)]
    marked = [q for passage in passages() for q in quotations(passage) if q.section]
    assert {kind for kind, _ in found} == set(REFERENCES) and len(found) > 300 and len(marked) > 15
    assert {number for kind, number in found if kind == "equations"} == set(FACTS["equations"])


def test_claims_name_sections_and_tables_that_exist():
    claims = json.loads((ROOT / "data/paper/reported_results.json").read_text(encoding="utf-8"))["claims"]
    places = {claim["where"] for claim in claims} - {"Abstract"}
    known = {*FACTS["sections"], *(f"Table {n}" for n in FACTS["tables"])}
    assert {place for place in places if place not in known and place.split()[0] not in known} == set()


@AT_HAND
def test_quotations_are_the_papers_words():
    assert list(wrong_quotations(passages(), paper())) == []


@AT_HAND
def test_the_facts_are_the_papers():
    "Headings in their order (`divided` fails without one), and what stands in which section."
    text, held = paper(), the_text()
    for kind, name in (("tables", "Table"), ("figures", "Figure"), ("algorithms", "Algorithm")):
        for number, fact in FACTS[kind].items():
            stands = text[fact["section"]]
            assert f"{name}{number}".lower() in stands or f"fig{number}" in stands, (name, number)
    captions = {"tables": r"Table (\d+): ", "figures": r"Fig\. (\d+): ", "algorithms": r"Algorithm (\d+) Soft"}
    for kind, caption in captions.items():
        assert set(re.findall(caption, held)) == set(FACTS[kind])
    parts = divided(held)
    for number, fact in FACTS["equations"].items():
        assert re.search(rf"\({number}\)", parts[fact["section"]]), number
    for number, fact in FACTS["sections"].items():
        assert [word for word in fact["about"] if letters(word) not in text[number]] == [], number


A_PAPER = {"3.4": letters("The loss of apples (i) is red."), "3.5": letters("We bought sixty apples in the morning.")}
A_PAPER["whole"] = A_PAPER["3.4"] + A_PAPER["3.5"]


def passage(text, near=""):
    return [Passage("here", text, near or text, True)]


@pytest.mark.parametrize(
    "text",
    [
        "The samples are those of section 3.6.",
        "The RefCOCO samples (paper 4.3).",
        "Masks cost more than Eq. 11 says.",
        "Eq. 9-11 are the last.",
        "Table 6 has RefCOCO.",
        "Figures 6 to 8 show it.",
        "Appendix D has more.",
        "The soft merge is Algorithm 2.",
        "The soft merge is Algorithm 1, line 18.",
        "The joint set has 56K images (section 3.4).",
        "HardBLINK is asked (4.2).",
    ],
)
def test_a_wrong_reference_is_found(text):
    assert list(wrong_references(passage(text)))


@pytest.mark.parametrize(
    "text",
    [
        "The samples of section 3.5 and the loss of 3.4; AURORA, section 4.3, has others; Chowdhery et al., 2022, "
        "appendix B.",
        "Eq. 5 and 6 average what Eq. 4-7 sum; Table 1 has cIoU, and 4.3 seconds are no section (4.35).",
    ],
)
def test_a_right_reference_passes(text):
    assert list(wrong_references(passage(text))) == []


def test_settings_are_read_as_they_are_written():
    lines = ["3.5: per device", "3.9", "2.5 times slower", "not in the paper; 3.1 was tried"]
    found = [list(references(Passage("settings.ini, line 1", line, line, True))) for line in lines]
    assert found == [[("sections", "3.5")], [("sections", "3.9")], [("sections", "2.5")], []]


@pytest.mark.parametrize(
    "text, words, marks",
    [
        ('"We bought sixty apples" (paper 3.5).', [], []),
        ('It says 3.5: "We bought ... in the morn-ing".', [], []),
        ('"The loss of apples is red" (3.4)', [], []),
        ('"We bought seventy apples" (paper 3.5).', ["not in section 3.5"], []),
        ('"... in the morning we bought ..." (paper 3.5).', ["not in section 3.5"], []),
        ('"In the morning [...] sixty apples" (paper 3.5).', ["not in section 3.5"], []),
        ('"We bought sixty apples" (paper 3.4).', ["not in section 3.4"], []),
        ('There were "sixty apples in the morning", he said.', ["without their section"], []),
        ('The paper says "We sold apples". More.', [], ["whose words"]),
        ('One asks "who sold apples". The paper says nothing.', [], []),
    ],
)
def test_a_wrong_quotation_is_found(text, words, marks):
    wrong, bare = list(wrong_quotations(passage(text), A_PAPER)), list(unmarked(passage(text)))
    assert [w in found for w, found in zip(words, wrong, strict=True)] == [True] * len(words)
    assert [m in found for m, found in zip(marks, bare, strict=True)] == [True] * len(marks)
