"""The static site of what a results folder holds, a subject a module: front page, claims, runs, notebooks, provenance.

`build` writes it. Nothing here makes a number that a table could take: what is missing is named with its command.
"""
from amdlib.show.report.site import build

__all__ = ['build']
