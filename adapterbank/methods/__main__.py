"""`python -m adapterbank.methods` prints the table of docs/methods.md."""

from adapterbank.methods.table import overview

print(overview().markdown())
