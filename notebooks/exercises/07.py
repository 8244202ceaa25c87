"""Exercises of notebook 07: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

# %% [markdown] 1
# ### Exercise 1 (change and see): a window for bone
#
# Of the voxels of a body, 40 % are fat at -94 HU, 42 % muscle at 35 HU, 10 % marrow at 100 HU, 6 % spongy bone at
# 400 HU and 2 % cortex at 1200 HU. The first paper's window cuts 8 % of them. Find one that is at most 600 HU wide and
# cuts less than 5 %.
# %%
from mr2ct_lib.course.exercises import check

window = (-150, 350)  # HU; change it  #| stub
window = (-150, 450)  #| solution
window = (-150, 1300)  #| wrong
check("07.1", window)
# %% [markdown] solution
# Spongy bone fits, cortex does not. Each HU more at the top leaves less contrast between fat and muscle.

# %% [markdown] 2
# ### Exercise 2 (recall): what needs a true CT?
#
# Which of these can be computed without a true CT (True), and which cannot (False)?
# %%
without_truth = {
    "cycle error": None,  #| stub
    "spread of two seeds": None,  #| stub
    "MAE in HU": None,  #| stub
    "distance of values": None,  #| stub
    "cycle error": True,  #| solution
    "cycle error": False,  #| wrong
    "spread of two seeds": True,  #| solution wrong
    "MAE in HU": False,  #| solution wrong
    "distance of values": True,  #| solution wrong
}
check("07.2", without_truth)
# %% [markdown] solution
# The cycle compares the MR with itself. It is a sign and no proof: a dark map says little.

# %% [markdown] 3
# ### Exercise 3 (build): the error that matters for dose
#
# For dose, errors that cancel along a beam do little harm, and errors of one sign add up. A first look is the mean
# signed error (that it is 0 does not prove that errors cancel along each beam). Write `bias(synthetic, truth, body)`:
# the mean signed error in HU inside the mask `body`.
# %%
def bias(synthetic, truth, body):
    """Mean of synthetic - truth inside the boolean mask body; arrays of one shape."""
    return ...  # your line  #| stub
    return (synthetic - truth)[body].mean()  #| solution
    return (synthetic - truth).mean()  #| wrong


check("07.3", bias)
# %% [markdown] solution
# Without the mask air counts, too. Our synthetic CT ends at -150 HU and true air is at -1000 HU: an error of 850 HU in
# each voxel of air, on which no dose depends.
