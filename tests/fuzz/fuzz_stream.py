"""The longer fuzz run over what a peer can write, with coverage: atheris. Not part of the test run, and pytest does not collect it.

    python -m pip install . atheris
    cd tests && python fuzz/fuzz_stream.py -max_len=20000 -max_total_time=3600 corpus/

The first bytes of an input say how the rest is split and how many connections it makes; everything else is the peers' bytes. The one
sentence it checks: any bytes, in any split, give messages or a counted drop. `corpus/` may be empty or not exist; the seeds below
are always added. A crash is written to the current directory and rerun by giving its name as the only argument.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

SPLITS: list[int | list[int]] = [[], 1, 7, [47, 1, 48, 49] * 500, [4096, 4143, 4144, 4145] * 20]


def one_input(data: bytes) -> None:
    """Run one input; anything but a counted drop is an exception."""
    from streamkit import REASONS, feed, split

    if len(data) < 2:
        return
    sizes, count, wire = SPLITS[data[0] % len(SPLITS)], 1 + data[1] % 3, data[2:]
    size = len(wire) // count + 1
    for outcome in feed([list(split(wire[at * size : (at + 1) * size], sizes)) for at in range(count)]):
        assert outcome.reason in REASONS, outcome.reason


def seeds() -> list[bytes]:
    """Proper conversations to start from."""
    from kernelkit import pack, pack_map

    kernel = pack_map() + pack(1, sport=1, dport=0, extensions=b"\x05\x00\x08") + pack(2, b"hello") + pack(3, b"x" * 5000, flags=4)
    node = pack(0, bytes(8192), sport=0, dport=0, flags=1, extensions=b"R\x01\0\0\0\0\0\x07") + pack(9, b"hello", flags=2, ack=5)
    return [bytes([split, 0]) + wire for split in range(len(SPLITS)) for wire in (kernel, node)]


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["rdsx"]):
        import rdsx  # noqa: F401
    corpus = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not corpus:
        corpus = ["corpus"]
        sys.argv.append("corpus")
    if not Path(corpus[0]).is_file():
        Path(corpus[0]).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (Path(corpus[0]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
