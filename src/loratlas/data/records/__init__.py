"""Files, tables and lists become records: JSON text, one record per line, in which nothing is guessed.

A cell is text until a form asks for more. CSV cells are the strings that stand in the file; JSON stays JSON, numbers
in their own digits; columns of Parquet and of the Hub are written out by their declared type. Everything lies in
files and is read block by block, so that memory does not grow with the number of rows.
"""
