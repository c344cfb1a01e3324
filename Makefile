# make demo | test | lint | types | docs | bench: each makes .venv and installs what it needs first.
PYTHON ?= python3
