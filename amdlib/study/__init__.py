"""Studies: what is trained together and judged, by the same statistics: detectors, data and losses of the user's, or a
table of the paper's.

`pair` looks at two detectors; `study` and `paper_table` say what is trained and what came of it, `studied` what is done
with either. What decides a number is not here.
"""
