"""rdsx measured against what a user would pick instead.

`python -m benchmarks run` runs scenarios (`scenarios.py`) over backends (`backends/`), each in fresh processes (`worker.py`), and
writes tables and a result file; `compare`, `plot` and `targets` read result files. Needs the extras `cli` and `bench` of an rdsx that is
installed, or installed in place (`pip install -e '.[cli,bench]'`). See README.md beside this file.
"""
