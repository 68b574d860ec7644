"""Every rewrite: one pass per file, one folder per family."""

# The repository's root is on sys.path in development. Under its bare name this package would exist
# a second time, with classes that are not those the registry and the pipelines know.
if __name__ == "passes":
    raise ImportError("The folder passes/ is the package flowopt.passes: write `import flowopt.passes`.")
