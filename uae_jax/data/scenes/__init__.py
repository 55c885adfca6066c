"""The drawn world: scenes with exact truth, their captions and a detector.

A scene is an int array [n, 5], one object a row, in row-major cell order:
columns shape, colour, size, row, col index the names in `draw` and `grammar`.
Beside it there may be a string of letters, see `glyphs`.
"""
