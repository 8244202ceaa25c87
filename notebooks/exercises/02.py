"""Exercises of notebook 02: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

import numpy as np

from mr2ct_lib.methods import losses

# %% [markdown] 1
# ### Exercise 1 (change and see): an image that `row` says nothing about
#
# Change the numbers of this image until its NCC with `row` is 0. It must not be flat.
# %%
from mr2ct_lib.course.exercises import check

changed = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 9.0]])  #| stub
changed = np.array([[0, 0, 3], [0, 0, 3], [0, 0, 3.0]])  #| solution
changed = np.array([[9, 0, 0], [0, 0, 0], [0, 0, 0.0]])  #| wrong
check("02.1", changed)
# %% [markdown] solution
# A bright column does it. In each row it has the same mean, so the bright row of `row` meets nothing special: the
# products of the deviations cancel. Many other images do it as well.

# %% [markdown] 2
# ### Exercise 2 (recall): which edges keep their sign?
#
# Without looking up: from the first tissue to the second, do MR and CT step in the same direction (True) or in
# opposite ones (False)?
# %%
keeps_sign = {
    "air to fat": None,  #| stub
    "air to fat": True,  #| solution
    "air to fat": False,  #| wrong
    "fat to muscle": None,  #| stub
    "fat to muscle": False,  #| solution wrong
    "muscle to spongy bone": None,  #| stub
    "muscle to spongy bone": True,  #| solution wrong
    "fat to cortical bone": None,  #| stub
    "fat to cortical bone": False,  #| solution wrong
}
check("02.2", keeps_sign)
# %% [markdown] solution
# Fat is the brightest tissue of the MR and the darkest of the body in CT, so its edges inside the body change sign.

# %% [markdown] 3
# ### Exercise 3 (build): one gradient instead of two
#
# GC treats $x$ and $y$ separately. An image whose edges all run one way has a blank derivative in the other direction.
# What is its GC with *itself*? Write `magnitude_correlation(a, b)`, the NCC of the lengths
# $\sqrt{(\partial_x)^2+(\partial_y)^2}$. The check compares your value for two random images with the NCC of their
# gradient lengths, and tests four laws: an image with itself gives 1; so does one whose edges run one way; inverting an
# image changes nothing; a blank image gives finite slopes. `losses.gradients(image)` returns both derivatives,
# `losses.normalised_cross_correlation` one value per image.
# %%
def magnitude_correlation(a, b):
    """NCC of the lengths of the gradients of two batches (n, 1, h, w): (n,)."""
    return ...  # your lines  #| stub
    lengths = [sum(d**2 for d in losses.gradients(image)).add(1e-12).sqrt() for image in (a, b)]  #| solution
    lengths = [sum(d**2 for d in losses.gradients(image)).sqrt() for image in (a, b)]  #| wrong
    return losses.normalised_cross_correlation(*lengths)  #| solution wrong


check("02.3", magnitude_correlation)
# %% [markdown] solution
# Without the small number under the root, the slope at a blank pixel is $0/0$: the same mistake as a missing `eps`,
# one step earlier. GC gives such a one-way image only 1/2 with itself. On anatomy, where edges run every way, that
# costs nothing.
