"""`python -m adapterbank.methods` prints the README's table of methods."""

from adapterbank.methods.table import overview

print(overview().markdown())
