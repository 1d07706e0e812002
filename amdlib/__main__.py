"""`python -m amdlib`, see cli.py."""
import sys

from amdlib.cli import main

if __name__ == '__main__':
    sys.exit(main())
