"""Golden cases: inputs with the numbers that the statistics must give for them, and the runner that checks them.

    python -m tests.golden                    # the project's own set, tests/golden/cases.json
    python -m tests.golden FILE -k kappa -v   # another file of the same form

`form` reads a file and compares numbers, `topics` says which function of ich_study answers which topic, `make_cases` made the
project's own set by two independent routes (`by_library`, `by_hand`) and never imports ich_study."""
