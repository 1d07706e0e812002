"""A run's life: its recipe, its mmengine Config, what makes it stale, where it lies, how it is trained and batched.

What decides a number belongs in `engine`; what tells of numbers in `show`.
"""
