"""The command line: parsing and printing, nothing else.

main.py       `geokv`, errors as one line, exit codes      addresses.py  which nodes a command talks to
lazy.py       commands that are imported when they run      output.py     tables for people, JSON for programs
exits.py      what each exit code means                     one module per command besides
"""
