"""The pipeline: preflight, convert, fuse, stages, evaluate, export, each resumed by its artefact."""
