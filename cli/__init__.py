"""The command line: one command per file; render_*.py say what is shown, and only render.py imports rich."""

# The repository's root is on sys.path in development. Under its bare name this package would exist
# a second time, and would shadow any other package called cli.
if __name__ == "cli":
    raise ImportError("The folder cli/ is the package flowopt.cli: write `import flowopt.cli`.")
