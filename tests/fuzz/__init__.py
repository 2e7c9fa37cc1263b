"""Fuzzing of everything that reads bytes from outside; `python tests/fuzz --help` says how.

A target makes cases by changing valid ones where they have a structure, and checks what the product makes of them:
against a second decoder (`oracle.py`) where the answer is a value, else by what must hold whatever came.
"""
