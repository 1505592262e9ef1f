"""Measurements against the naive formulas and other libraries, in the same run: ``python -m benchmarks --help``.

| file | concept |
|---|---|
| ``shapes`` | shapes, cases, suites: the committed lists |
| ``operations`` | what is computed: random arguments, the float64 answer, the least work |
| ``contenders/`` | who computes it: the one table |
| ``cases``, ``run``, ``processes`` | which cases; one process for each; its end by a signal or a clock |
| ``worker``, ``programs``, ``truth``, ``timing``, ``device`` | inside that process: compile, check, time, weigh |
| ``records``, ``table``, ``compare``, ``targets``, ``plots``, ``listing`` | results: files, and what is made of them |
| ``aot``, ``aot_worker``, ``chips``, ``hlo`` | compilers of chips that are not here |

``docs/benchmarks.md`` says how it measures.
"""
