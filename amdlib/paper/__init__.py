"""What is compared, as plain data: detector pairs, rows, tables, profiles and the numbers that the paper prints.

A pair, a variant of a method, a table or a profile is added here, one entry each. No code that trains, reads or draws.
"""
