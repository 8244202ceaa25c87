"""Exercises of notebook 04: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

from mr2ct_lib.methods import offsets

# %% [markdown] 1
# ### Exercise 1 (build): two scanners in a row
#
# An image is read along the field `first`, and the result is read along `second`. Write `in_a_row(first, second)`,
# the one field that does both: $\text{second}(p) + \text{first}\big(p + \text{second}(p)\big)$. Fields have the shape
# `(1, 2, h, w)`, in pixels. `offsets.resample` reads a field as it reads an image; give it the displacement as
# `second[:, None]`.
# %%
from mr2ct_lib.course.exercises import check


def in_a_row(first, second):
    """The displacement (1, 2, h, w) of reading along `first`, and the result along `second`."""
    return ...  # your line  #| stub
    return second + offsets.resample(first, second[:, None])  #| solution
    return first + second  #| wrong


check("04.1", in_a_row)
# %% [markdown] solution
# With the inverse of `D` as the second field the result is 0 everywhere: the last steps above show it.

# %% [markdown] 2
# ### Exercise 2 (change and see): six pixels by the deep layers alone
#
# Change by how many rows of its own map each of the four layers reads further down, so that the slice moves by 6 pixels
# in all. The first two layers must stay at 0. The check says by how many pixels your slice moves.
# %%
rows_down = [1, 1, 1, 1]  # in pixels of each layer's own map  #| stub
rows_down = [0, 0, 1, 1]  #| solution
rows_down = [0, 0, 3, 3]  #| wrong
check("04.2", rows_down)
# %% [markdown] solution
# The third map has half as many rows as the slice and the last a quarter, so one of their rows is 2 and 4 pixels.
# 3 rows of the third alone, or 1.5 of the last, are right as well.

# %% [markdown] 3
# ### Exercise 3 (recall): who teaches the offset layers?
#
# Cover the table. Which terms of the loss have a gradient in the offset layers (True)?
# %%
teaches_offsets = {"adversarial": None, "cycle": None, "dicycle": None, "align": None}  #| stub
teaches_offsets = {"adversarial": True, "cycle": False, "dicycle": True, "align": False}  #| solution
teaches_offsets = {"adversarial": True, "cycle": False, "dicycle": True, "align": True}  #| wrong
check("04.3", teaches_offsets)
# %% [markdown] solution
# The adversarial term and the deformed cycle are computed from deformed passes. The other two never switch the
# offset layers on.
