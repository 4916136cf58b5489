"""What building a knowledge base of a Wikidata dump takes: items per second and memory, measured per process.

    python benchmarks/knowledge_base.py [--items 1000000]

The dump is synthetic, from a seed, in the form of Wikidata's and gzipped: every item has labels in several
languages, aliases, a description, statements and sitelinks (1.5 kB); one line in a thousand is cut off. A
process of its own builds the knowledge base of it, another that of a quarter of it; the memory is the highest
resident set of each (VmHWM). It grows with the names until they fill a part of the alias index (4 million),
and no further. The rates are by wall clock, and by CPU time of the one process that works.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"kb_peak_mb": "<= 700"}
_BAD_LINE = 1_000
_LANGUAGES = ("en", "de", "fr", "es", "ja")


def main() -> None:
    """Run everything, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the dump")
    parser.add_argument("--build", type=Path, nargs=2, metavar=("DUMP", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        print(json.dumps(_build(*options.build)))
        return
    figures = measure(options.items)
    print(f"\n{'figure':<34}{'value':>14}  wanted")
    for name, value in figures.items():
        print(f"{name:<34}{value:>14,.2f}  {LIMITS.get(name, '')}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "knowledge_base", "figures": rounded}))


def measure(items: int) -> dict[str, float]:
    """Build the knowledge base of a dump of `items`, and of a quarter of them, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, count in (("quarter", items // 4), ("whole", items)):
            dump = Path(folder) / f"{name}.json.gz"
            write_dump(dump, count)
            command = [sys.executable, __file__, "--build", str(dump), str(Path(folder) / name)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(run.stdout.splitlines()[-1])
            assert found[name]["left_out"] == {"no JSON": count // _BAD_LINE}, found[name]["left_out"]
    quarter, whole = found["quarter"], found["whole"]
    return {
        "kb_items": items,
        "kb_dump_mb": whole["dump_mb"],
        "kb_names": whole["names"],
        "kb_items_per_s": items / whole["seconds"],
        "kb_items_per_cpu_s": items / whole["cpu_seconds"],
        "kb_peak_mb": whole["peak_mb"],
        "kb_peak_mb_quarter": quarter["peak_mb"],
        "kb_bytes_an_entity": whole["bytes"] / whole["entities"],
    }


def write_dump(path: Path, items: int) -> None:
    """Write a dump of `items`, the same ones for the same number."""
    draw = random.Random(5)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(300_000)]

    def text(fewest: int, most: int) -> str:
        # the square makes some words frequent, as in any language
        words = (
            vocabulary[int(draw.random() ** 2 * len(vocabulary))] for _ in range(draw.randint(fewest, most))
        )
        return " ".join(words)

    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"[\n")
        for number in range(items):
            line = json.dumps(_item(number, text, draw), separators=(",", ":")).encode()
            if number % _BAD_LINE == _BAD_LINE - 1:
                line = line[: len(line) // 2]
            file.write(line + (b",\n" if number < items - 1 else b"\n"))
        file.write(b"]\n")


def _item(number: int, text, draw: random.Random) -> dict[str, object]:  # type: ignore[no-untyped-def]
    def statement(subject: str) -> dict[str, object]:
        value = {"entity-type": "item", "id": f"Q{draw.randrange(1000)}"}
        snak = {"snaktype": "value", "property": subject, "datavalue": {"value": value}, "hash": "0" * 40}
        return {
            "mainsnak": snak,
            "type": "statement",
            "id": f"Q{number}$",
            "rank": "normal",
            "references": [],
        }

    return {
        "type": "item",
        "id": f"Q{number + 10_000_000}",
        "labels": {code: {"language": code, "value": text(1, 3).title()} for code in _LANGUAGES},
        "descriptions": {"en": {"language": "en", "value": text(3, 8)}},
        "aliases": {"en": [{"language": "en", "value": text(1, 3)} for _ in range(draw.randrange(4))]},
        "claims": {subject: [statement(subject)] for subject in ("P31", "P17", "P131", "P625")},
        "sitelinks": {
            f"w{n}wiki": {"site": f"w{n}wiki", "title": "x", "badges": []}
            for n in range(int(draw.expovariate(0.5)))
        },
        "lastrevid": number,
    }


def _build(dump: Path, output: Path) -> dict[str, object]:
    from mofi_lightning.curation.knowledge_bases.command import build
    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
    from mofi_lightning.curation.knowledge_bases.wikidata import WikidataReader

    start, cpu_start = time.perf_counter(), time.process_time()
    build(WikidataReader(dump), output)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    base = KnowledgeBase(output)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    with gzip.open(dump) as file:
        size = file.seek(0, 2)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": int(peak[1]) / 1024,
        "entities": len(base),
        "names": len(base.aliases),
        "bytes": sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
        "left_out": base.skipped,
        "dump_mb": size / 1e6,
    }


if __name__ == "__main__":
    main()
