"""``python -m pipert`` is the ``pipert`` command."""

from pipert.cli import main

main()
