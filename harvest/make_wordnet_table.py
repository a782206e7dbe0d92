"""Make `wordnet.tsv.gz`: the name of every WordNet 3.0 noun, by the id that ImageNet's folders carry.

A maintainer's command, not part of the installed package:

    python harvest/make_wordnet_table.py WORDNET_DIR IMAGENET_FOLDERS harvest/wordnet.tsv.gz

WORDNET_DIR holds `data.noun` of WordNet 3.0 (Debian's package `wordnet-base` has it under /usr/share/wordnet).
IMAGENET_FOLDERS is a file of the thousand folder names of ImageNet-1k, one a line. The name of a synset is its first
lemma; for the thousand classes of ImageNet-1k it is open_clip's curated name, which tells two cranes apart. The output
depends on nothing else.
"""

import gzip
import re
import sys
from pathlib import Path

# data.noun: offset, file number, "n", count of lemmas in hex, then the first lemma; WordNet's wndb(5WN)
_SYNSET = re.compile(r"^(\d{8}) \d\d n [0-9a-f]{2} (\S+) ")


def main(wordnet_dir: Path, imagenet_folders: Path, out_path: Path) -> None:
    """Write the table: `n01440764<TAB>tench`, sorted by id, gzip without a time stamp."""
    from open_clip import IMAGENET_CLASSNAMES

    names = {}
    for line in (wordnet_dir / "data.noun").read_text(encoding="ascii").splitlines():
        if match := _SYNSET.match(line):
            names[f"n{match[1]}"] = match[2].replace("_", " ")
    wnids = sorted(imagenet_folders.read_text(encoding="ascii").split())
    names.update(zip(wnids, IMAGENET_CLASSNAMES, strict=True))
    text = "".join(f"{wnid}\t{name}\n" for wnid, name in sorted(names.items()))
    out_path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
