"""The parts of `make bench`, one file each. A part is a list of cases and the rows of the table that they fill."""
