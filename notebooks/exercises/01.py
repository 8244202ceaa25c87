"""Exercises of notebook 01: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

import numpy as np

# %% [markdown] 1
# ### Exercise 1 (change and see): the brightest flip angle
#
# Move the flip slider and read the number at fat's bar: it rises, then falls. At which angle is it greatest, with a TR
# of 7.9 ms? And muscle? Half a degree is near enough; the check says in which direction to go on.
# %%
from mr2ct_lib.course.exercises import check

brightest = {"fat": None, "muscle": None}  # degrees  #| stub
t1_of = {"fat": 250, "muscle": 990}  # ms  #| solution
brightest = {tissue: np.rad2deg(np.arccos(np.exp(-7.9 / t1))) for tissue, t1 in t1_of.items()}  #| solution
brightest = {"fat": 14.3, "muscle": 14.3}  #| wrong
check("01.1", brightest)
# %% [markdown] solution
# Set the derivative of $\sin\alpha\,/\,(1 - E_1\cos\alpha)$ to zero: $\cos\alpha\,(1 - E_1\cos\alpha) -
# E_1\sin^2\alpha = \cos\alpha - E_1 = 0$, so $\cos\alpha = E_1$, the *Ernst angle*: 14.3° for fat, 7.2° for muscle.
# The paper's 30° lies well above both. It gives up signal to gain T1 contrast.

# %% [markdown] 2
# ### Exercise 2 (recall): what a gain changes
#
# Somebody scans the same patient again with three times the receiver gain. Which of these numbers change (True),
# which do not (False)?
# %%
changes = {
    "muscle in a.u.": None,  #| stub
    "muscle in a.u.": True,  #| solution wrong
    "muscle in percent of the bright tissue": None,  #| stub
    "muscle in percent of the bright tissue": False,  #| solution wrong
    "fat divided by muscle": None,  #| stub
    "fat divided by muscle": False,  #| solution wrong
    "signal divided by the noise's SD": None,  #| stub
    "signal divided by the noise's SD": False,  #| solution
    "signal divided by the noise's SD": True,  #| wrong
}
check("01.2", changes)
# %% [markdown] solution
# The gain multiplies every voxel, tissue and noise alike. A ratio of two numbers of one scan does not change.

# %% [markdown] 3
# ### Exercise 3 (build): the same place in another scan
#
# Write `same_place`: the index at which a scan with the affine `there` shows what a scan with the affine `here` shows
# at `index`. It may lie between voxels, so return floats. Both affines are 4 x 4, from index to mm.
# %%
def same_place(index, here, there):
    """The index (3,) in `there` of the place that has `index` in `here`."""
    return ...  # your lines  #| stub
    mm = here @ [*index, 1]  #| solution
    return (np.linalg.inv(there) @ mm)[:3]  #| solution
    mm = here[:3, :3] @ index  #| wrong
    return np.linalg.inv(there[:3, :3]) @ mm  #| wrong


check("01.3", same_place)
# %% [markdown] solution
# The 1 makes the last column of the affine count, the position of the first voxel.
