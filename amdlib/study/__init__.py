"""Studies: a detector, data and losses of the user's, distilled as the paper's are, and judged by the same statistics.

`pair` looks at two detectors, `study` says what is trained and what came of it. What decides a number is not here.
"""
