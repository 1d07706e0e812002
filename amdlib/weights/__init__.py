"""Weight files: read strictly, written whole, and, where they are published, found or fetched.

Which file a run takes is decided elsewhere; checkpoints to resume from are the engine's.
"""
