"""Kinds of mistakes, one file per family. Every ``Kind`` at the top of a file counts."""
