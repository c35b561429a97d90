"""What the miniature knows, how well its judges see, how fast it is: every figure of its card.

    python benchmarks/miniature.py [--quick] [--json FILE] [--only SECTION,...]

Sections: judges, model, vocabulary, words, alarms, quality, determinism, speed.

``--quick`` takes very few pictures per row and is no result. The seeds of the sections occur nowhere in training or
calibration.
"""

import argparse
import json
import time

from sections.bench import Bench
from sections.drawing import model
from sections.likeness import quality
from sections.running import determinism, speed
from sections.seeing import alarms, judges
from sections.wording import vocabulary, words

SECTIONS = {
    "judges": judges,
    "model": model,
    "vocabulary": vocabulary,
    "words": words,
    "alarms": alarms,
    "quality": quality,
    "determinism": determinism,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures per row; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    options = parser.parse_args()
    bench = Bench(options.quick)
    for name in options.only.split(","):
        started = time.perf_counter()
        SECTIONS[name](bench)
        print(f"\n({name}: {time.perf_counter() - started:.0f} s)", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(bench.told, file, indent=1)


if __name__ == "__main__":
    main()
