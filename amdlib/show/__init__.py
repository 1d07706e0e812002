"""What tells of numbers: tables beside the paper's, sweeps, figures, pictures, the report, the values behind a run.

An edit here makes no number stale: what decides one belongs in `engine`, what a run is in `runs`. Nothing here writes
unless it is called `write`, `save` or `build`; nothing here trains.
"""
