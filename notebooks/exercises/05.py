"""Exercises of notebook 05: stub, solution and a wrong answer of each in one cell (see tools/exercises.py)."""

import numpy as np

# %% [markdown] 1
# ### Exercise 1 (recall): how many independent values?
#
# Ten test patients of twelve slices each, three seeds of both methods. You ask whether one method has the lower MAE
# *for other patients*. What is n in the paired test?
# %%
from mr2ct_lib.course.exercises import check

n = None  #| stub
n = 10  #| solution
n = 120  #| wrong
check("05.1", n)
# %% [markdown] solution
# Average over a patient's slices and over the seeds first: ten differences are left. They answer the question for these
# three networks. For other seeds, too, take the crossed test, which keeps 3 seeds x 10 patients apart.

# %% [markdown] 2
# ### Exercise 2 (change and see): how many patients would it have taken?
#
# The differences of the three patients have the mean -0.452 and the SD 0.907 grey levels. Suppose that further
# patients were like them. What is the smallest number of patients whose 95 % interval leaves 0 out?
# %%
patients_needed = 3  # change it  #| stub
patients_needed = 18  #| solution
patients_needed = 12  #| wrong
check("05.2", patients_needed)
# %% [markdown] solution
# The interval is the mean ± $t_{0.975,\,n-1}\,s/\sqrt n$. At n = 17 it reaches 0.014 above 0, at n = 18 it ends just
# below 0.

# %% [markdown] 3
# ### Exercise 3 (build): the error of each structure
#
# Write `mae_by_label(synthetic, truth, labels)`: a dictionary with the MAE of each label that occurs, over its own
# pixels. Too high and too low must not cancel.
# %%
def mae_by_label(synthetic, truth, labels):
    """Mean absolute error of each label in three arrays of one shape: {label: MAE}."""
    return ...  # your lines  #| stub
    error = np.abs(synthetic - truth)  #| solution
    error = synthetic - truth  #| wrong
    return {int(label): error[labels == label].mean() for label in np.unique(labels)}  #| solution
    return {int(label): abs(error[labels == label].mean()) for label in np.unique(labels)}  #| wrong


check("05.3", mae_by_label)
# %% [markdown] solution
# The absolute value comes before the mean. After it, +30 and -30 HU would be no error at all.
