"""VASP's place in tests: a program with its input and output files, and POTCARs that hold no potential."""
