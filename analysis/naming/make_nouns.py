"""Makes `nouns.txt` and its licences: English nouns for names of features, from two Debian packages and open_clip.

    apt-get download wamerican wordnet-base
    python -m thresher.analysis.naming.make_nouns wamerican_*.deb wordnet-base_*.deb

A word is taken that wamerican spells in lower-case letters, WordNet 3.0 has as a noun, and CLIP's byte-pair vocabulary
holds whole, which keeps the words that are frequent on the web. Left out are words of one or two letters; words that
WordNet's tagged texts have as another part of speech and never as a noun, or that are an irregular form of a verb and
never tagged as a noun (`are`); and words whose commonest noun WordNet marks, or explains, as slang, obscene,
disparaging or a slur, as well as words that it never tags and of which it says so of any sense. They stand in the order
in which the byte-pair vocabulary learnt them: roughly the frequent first.
"""

import gzip
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

_HERE = Path(__file__).parent
_MARKS = ("slang", "obscenity", "disparagement", "ethnic_slur")
_SAID = re.compile(r"\b(slur|offensive|derogatory|disparaging|obscene|vulgar)\b")
_NOUN, _USAGE = "1", ";u"


def make_nouns(wamerican: Path, wordnet: Path) -> list[str]:
    """The nouns, from folders into which the two packages were unpacked."""
    import open_clip

    words = (wamerican / "usr/share/dict/american-english").read_text(encoding="utf-8").split()
    data = wordnet / "usr/share/wordnet"
    nouns = _nouns(data)
    known = {word for word in words if re.fullmatch("[a-z]{3,}", word)} & nouns
    with gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # those that CLIP's tokenizer takes
    whole = ["".join(merge.split()) for merge in merges]
    return [word.removesuffix("</w>") for word in whole if word.endswith("</w>") and word.removesuffix("</w>") in known]


def _nouns(data: Path) -> set[str]:
    """WordNet's nouns of one word, without those that the module's docstring leaves out."""
    spellings, marked = _synsets(data / "data.noun")
    tagged: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for line in (data / "cntlist.rev").read_text(encoding="latin-1").splitlines():
        key, _, count = line.split()
        lemma, sense = key.split("%")
        tagged[sense[0] == _NOUN][lemma] += int(count)
    forms = {line.split()[0] for line in _lines(data / "verb.exc")}
    found = set()
    for line in _lines(data / "index.noun"):
        cells = line.split()  # lemma pos synset_cnt p_cnt [symbols] sense_cnt tagsense_cnt offset [offset...]
        lemma, senses = cells[0], cells[6 + int(cells[3]) :]
        as_noun, as_other = tagged[True][lemma], tagged[False][lemma]
        is_noun = as_noun > 0 or (as_other == 0 and lemma not in forms)
        judged = senses[:1] if as_noun else senses
        # index.noun has lower case alone: the synsets' spelling tells `who` from WHO
        is_lower_case = any(lemma in spellings[sense] for sense in senses)
        if is_noun and is_lower_case and not marked.intersection(judged):
            found.add(lemma)
    return found


def _synsets(data_noun: Path) -> tuple[dict[str, list[str]], set[str]]:
    """The words of each synset by its offset, and the offsets of those marked or explained as `_MARKS` and `_SAID`."""
    words: dict[str, list[str]] = {}
    usage: dict[str, list[str]] = {}
    found, marks = set(), set()
    for line in _lines(data_noun):
        head, gloss = line.split("|", 1)
        cells = head.split()  # offset lex_filenum ss_type w_cnt word lex_id [...] p_cnt symbol offset pos source [...]
        offset, n_words = cells[0], int(cells[3], 16)
        words[offset] = cells[4 : 4 + 2 * n_words : 2]
        if set(words[offset]).intersection(_MARKS):
            marks.add(offset)
        pointers = cells[5 + 2 * n_words :]
        usage[offset] = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] == _USAGE]
        if _SAID.search(gloss):
            found.add(offset)
    return words, found | {offset for offset, targets in usage.items() if marks.intersection(targets)}


def _lines(path: Path) -> list[str]:
    """Lines of one of WordNet's files, the licence at its head left out."""
    return [line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith(" ")]


def main(wamerican_deb: str, wordnet_deb: str) -> None:
    """Unpack the packages; write the list and the licences beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        for name, deb in (("wamerican", wamerican_deb), ("wordnet", wordnet_deb)):
            places[name] = Path(folder) / name
            subprocess.run(["dpkg-deb", "-x", deb, str(places[name])], check=True)
        found = make_nouns(places["wamerican"], places["wordnet"])
        (_HERE / "nouns.txt").write_text("".join(f"{word}\n" for word in found), encoding="utf-8")
        for name, package in (("wamerican", "wamerican"), ("wordnet", "wordnet-base")):
            text = (places[name] / f"usr/share/doc/{package}/copyright").read_text(encoding="utf-8")
            (_HERE / f"NOUNS-LICENSE-{package}").write_text(text, encoding="utf-8")
    print(f"nouns.txt: {len(found):,} nouns")


if __name__ == "__main__":
    main(*sys.argv[1:])
